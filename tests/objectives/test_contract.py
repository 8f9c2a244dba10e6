"""What every registered objective must keep, whatever it computes."""

import itertools

import pytest
import torch

from calmrl_lab.objectives import objectives

NAMES = ("vision", "audio", "caption", "subtitle", "depth", "flow")


def build(name, k, d, **options):
    return objectives.get(name)(NAMES[:k], d, **options).double()


def batch(b, k, d, seed=0, complete=False):
    generator = torch.Generator().manual_seed(seed)
    z = torch.nn.functional.normalize(torch.randn(b, k, d, generator=generator, dtype=torch.float64), dim=-1)
    mask = torch.rand(b, k, generator=generator) < 0.7
    mask[torch.arange(b), torch.randint(k, (b,), generator=generator)] = True
    if complete:
        mask[:] = True
    imputed = torch.randn(b, k, d, generator=generator, dtype=torch.float64) * 0.1
    return z, mask, imputed


def loss(objective, z, mask, imputed):
    if getattr(objective, "generator", None) is not None:
        objective.generator.manual_seed(0)
    return objective(z, mask, imputed)["loss"]


@pytest.fixture(params=objectives.names())
def name(request):
    return request.param


@pytest.mark.parametrize("k", [2, 3, 5])
def test_terms_are_scalars_and_the_loss_is_finite(name, k):
    z, mask, imputed = batch(8, k, 6)
    terms = build(name, k, 6)(z, mask, imputed)
    assert "loss" in terms
    assert all(value.ndim == 0 and bool(torch.isfinite(value)) for value in terms.values())


def test_what_is_hidden_cannot_change_the_loss(name):
    z, mask, imputed = batch(8, 4, 6)
    objective = build(name, 4, 6)
    spoiled = torch.where(mask.unsqueeze(-1), z, torch.nan).requires_grad_()
    value = loss(objective, spoiled, mask, imputed)
    torch.testing.assert_close(value, loss(objective, z, mask, imputed), rtol=1e-12, atol=0)
    value.backward()
    assert bool(torch.isfinite(spoiled.grad).all())
    assert bool((spoiled.grad[~mask] == 0).all())


def test_the_order_of_items_does_not_matter(name):
    z, mask, imputed = batch(8, 4, 6)
    objective = build(name, 4, 6, **({"alpha": 0.0} if name == "calmrl" else {}))  # matching draws its negatives by position
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        loss(objective, z[order], mask[order], imputed[order]), loss(objective, z, mask, imputed), rtol=1e-12, atol=1e-12
    )


def test_the_gradient_is_finite_when_modalities_are_equal(name):
    z, mask, imputed = batch(6, 3, 6, complete=True)
    z = z[:, :1].expand(-1, 3, -1).clone().requires_grad_()
    loss(build(name, 3, 6), z, mask, imputed).backward()
    assert bool(torch.isfinite(z.grad).all())


@pytest.mark.parametrize("shown", [[[1, 1, 1]], [[1, 0, 0]], [[0, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 1, 0]]])
def test_a_batch_with_nothing_to_learn_gives_a_number_and_a_gradient(name, shown):
    mask = torch.tensor(shown, dtype=torch.bool)
    z, _, imputed = batch(len(shown), 3, 6)
    z.requires_grad_()
    value = loss(build(name, 3, 6), z, mask, imputed)
    assert bool(torch.isfinite(value))
    value.backward()
    assert bool(torch.isfinite(z.grad).all())


def test_the_gradient_is_that_of_finite_differences(name):
    z, mask, imputed = batch(4, 3, 4, seed=3)
    mask[:2] = True
    objective = build(name, 3, 4)
    torch.autograd.gradcheck(lambda x: loss(objective, x, mask, imputed), z.requires_grad_(), atol=1e-5)


def test_the_seed_alone_decides_the_start(name):
    torch.manual_seed(1)
    first = build(name, 3, 6).state_dict()
    torch.manual_seed(2)
    second = build(name, 3, 6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def all_masks(k):
    return torch.tensor(list(itertools.product([False, True], repeat=k))[1:])


@pytest.mark.parametrize("k", [2, 3, 4])
def test_every_mix_of_patterns_in_one_batch(name, k):
    mask = all_masks(k).repeat(2, 1)
    z, _, imputed = batch(len(mask), k, 6)
    assert bool(torch.isfinite(loss(build(name, k, 6), z.requires_grad_(), mask, imputed)))
