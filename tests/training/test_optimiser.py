"""One update, and the record of an epoch's steps: what teaches nothing moves nothing, what breaks is found."""

import copy

import pytest
import torch

from calmrl_lab.training.optimiser import StepMetrics, make_optimiser, update


def problem(fused):
    weight = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    if fused:
        optimiser = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    else:
        optimiser = make_optimiser([weight], 0.1, 0.1)
    return weight, optimiser


def moments(optimiser):
    return copy.deepcopy(optimiser.state_dict()["state"])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("factor", [0.0, float("nan"), float("inf")])
def test_a_step_without_a_usable_gradient_is_as_if_it_had_not_been(fused, factor):
    weight, optimiser = problem(fused)
    update(weight.square().sum(), optimiser, [weight], 2.0)
    before, state = weight.detach().clone(), moments(optimiser)
    norm = update((weight * factor).sum(), optimiser, [weight], 2.0)
    assert float(norm) == 0 if factor == 0 else not bool(torch.isfinite(norm))
    assert torch.equal(weight.detach(), before)
    for key, value in moments(optimiser)[0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(state[0][key])), key
    update(weight.square().sum(), optimiser, [weight], 2.0)
    assert not torch.equal(weight.detach(), before)


def test_a_loss_that_depends_on_nothing_moves_nothing():
    weight, optimiser = problem(False)
    before = weight.detach().clone()
    assert float(update(torch.tensor(3.0), optimiser, [weight], 2.0)) == 0
    assert torch.equal(weight.detach(), before)


def test_the_gradient_is_clipped_and_its_norm_told():
    weight, optimiser = problem(False)
    norm = update((7 * weight).sum(), optimiser, [weight], 2.0)
    assert float(norm) == pytest.approx(7 * 12**0.5)
    assert float(weight.grad.norm()) == pytest.approx(2.0, rel=1e-4)


def written(journal, losses, norms=None):
    found = []
    for step, loss in enumerate(losses):
        norm = torch.tensor(1.0 if norms is None else norms[step])
        terms = {"loss": torch.tensor(loss), "half": torch.tensor(loss) / 2, "skipped": torch.tensor(2.0)}
        found.append(journal.write(10 + step, torch.tensor([step, step + 1]), terms, norm))
    return found


def test_the_first_step_that_is_not_finite_is_found_whenever_one_looks():
    nan = float("nan")
    for every, told in ((1, [False, False, True, True]), (3, [False, False, True, False]), (9, [False] * 4)):
        journal = StepMetrics(torch.device("cpu"), every)
        found = written(journal, [1.0, 2.0, nan, nan])
        assert [broken is not None for broken in found] == told
        broken = found[2] or journal.look()
        assert (broken.step, broken.terms, broken.items.tolist()) == (12, ["loss", "half"], [2, 3])


def test_a_gradient_can_break_alone():
    (broken,) = written(StepMetrics(torch.device("cpu")), [1.0], [float("inf")])
    assert broken.terms == ["gradient"]


def test_means_and_idle_steps():
    journal = StepMetrics(torch.device("cpu"), 100)
    written(journal, [1.0, 2.0, 6.0], [1.0, 0.0, 0.0])
    assert journal.means() == {"loss": 3.0, "half": 1.5, "skipped": 2.0}
    assert (journal.steps, journal.idle()) == (3, 2)
    assert journal.look() is None
    assert StepMetrics(torch.device("cpu")).means() == {}
