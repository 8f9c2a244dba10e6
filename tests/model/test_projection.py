"""Projection heads: unit norm, masked entries silent, one seed one start."""

import pytest
import torch

from calmrl_lab.errors import CalmrlError
from calmrl_lab.model.projection import Heads

DIMS = {"vision": 7, "text": 5}


def features(n=6):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, d, generator=generator) for d in DIMS.values()]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_embeddings_are_unit_norm_and_masked_ones_zero(kind):
    mask = torch.tensor([[True, True], [True, False]] * 3)
    embeddings = Heads(DIMS, 4, kind)(features(), mask)
    assert torch.allclose(embeddings.norm(dim=-1), mask.float(), atol=1e-6)


def test_a_masked_feature_gets_no_gradient():
    rows = [f.requires_grad_() for f in features()]
    mask = torch.tensor([[True, False]] * 6)
    Heads(DIMS, 4)(rows, mask).sum().backward()
    assert rows[0].grad.abs().sum() > 0
    assert rows[1].grad.abs().sum() == 0


def test_the_seed_alone_decides_the_start():
    torch.manual_seed(1)
    first = Heads(DIMS, 4, "mlp", seed=3).state_dict()
    torch.manual_seed(2)
    second = Heads(DIMS, 4, "mlp", seed=3).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["maps.0.0.weight"], Heads(DIMS, 4, "mlp", seed=4).state_dict()["maps.0.0.weight"])


def test_a_start_in_closed_form_keeps_the_map_up_to_a_factor():
    generator = torch.Generator().manual_seed(1)
    rows, weight = features(20)[0], torch.randn(4, 7, generator=generator)
    heads = Heads(DIMS, 4)
    heads.load_direction(0, weight)
    wanted = torch.nn.functional.normalize(rows @ weight.T, dim=1)
    assert torch.allclose(heads.project(0, rows), wanted, atol=1e-5)
    assert float(heads.maps[0].weight.detach().norm()) == pytest.approx((4 / 3) ** 0.5, rel=1e-5)
    with pytest.raises(CalmrlError, match="linear heads only"):
        Heads(DIMS, 4, "mlp").load_direction(0, weight)


def test_published_weights_must_fit():
    heads = Heads(DIMS, 4)
    heads.load_linear(0, torch.eye(4, 7))
    assert torch.equal(heads.maps[0].weight, torch.eye(4, 7))
    with pytest.raises(CalmrlError, match="stored head of 'text' is"):
        heads.load_linear(1, torch.eye(4, 7))
    with pytest.raises(CalmrlError, match="linear heads only"):
        Heads(DIMS, 4, "mlp").load_linear(0, torch.eye(4, 7))


def test_an_unknown_head_is_refused():
    with pytest.raises(CalmrlError, match="unknown head 'conv'"):
        Heads(DIMS, 4, "conv")


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_modalities_start_on_one_side(kind):
    rows = dict(enumerate(f + 1 for f in features(50)))
    heads = Heads(DIMS, 4, kind, seed=1)
    before = [heads.maps[j](rows[j]).detach() for j in rows]
    heads.align_signs(rows)
    after = [heads.maps[j](rows[j]).detach() for j in rows]
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a @ a.T, b @ b.T, atol=1e-4)  # a reflection: nothing changes within a modality
    means = [torch.nn.functional.normalize(a.mean(dim=0), dim=0) for a in after]
    assert float(means[0] @ means[1]) == pytest.approx(1, abs=1e-5)
