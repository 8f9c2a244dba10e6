"""Which terms of an objective still move anything."""

import pytest
import torch

from calmrl_lab.objectives import objectives
from calmrl_lab.training.gradient_health import saturated, term_gradients

NAMES = ("vision", "audio", "caption")


def aligned(spread):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(32, 1, 64, generator=generator) + spread * torch.randn(32, 3, 64, generator=generator)
    return torch.nn.functional.normalize(z, dim=-1), torch.ones(32, 3, dtype=torch.bool)


def test_pmrls_alignment_saturates_at_its_released_temperature():
    z, mask = aligned(0.5)
    released = term_gradients(objectives.get("pmrl")(NAMES, 64, alignment_temperature=0.05), z, mask)
    warmer = term_gradients(objectives.get("pmrl")(NAMES, 64, alignment_temperature=0.5), z, mask)
    assert released["alignment"].alive == 0.0
    assert released["alignment"].pull < 1e-6
    assert saturated(released) == ["alignment"]
    assert warmer["alignment"].alive == 1.0
    assert saturated(warmer) == []


@pytest.mark.parametrize("name", objectives.names())
def test_looking_changes_nothing(name):
    z, mask = aligned(1.0)
    objective = objectives.get(name)(NAMES, 64)
    state = objective.generator.get_state() if objective.generator is not None else None
    found = term_gradients(objective, z, mask)
    assert found["loss"].pull > 0
    assert "temperature" not in found
    assert "skipped" not in found
    assert all(parameter.grad is None for parameter in objective.parameters())
    if state is not None:
        assert torch.equal(state, objective.generator.get_state())


def test_the_pull_is_counted_per_item():
    """clip on two identical batches: each item's own loss moves alike, however many items share the mean."""
    objective = objectives.get("pmrl")(NAMES, 64, alignment_temperature=0.5, alpha=0.0)
    z, mask = aligned(1.0)
    once = term_gradients(objective, z, mask)["alignment"]
    twice = term_gradients(objective, torch.cat([z, z]), torch.cat([mask, mask]))["alignment"]
    assert twice.pull == pytest.approx(once.pull, rel=1e-5)
    nothing = term_gradients(objective, z, torch.zeros_like(mask))["alignment"]
    assert nothing == (0.0, 0.0)
