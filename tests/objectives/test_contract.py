"""What every registered objective must keep, whatever it computes. A new objective is tested by being registered."""

import contextlib
import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from calmrl_lab.errors import CalmrlError
from calmrl_lab.model.projection import Heads
from calmrl_lab.objectives import objectives

NAMES = ("vision", "audio", "caption", "subtitle", "depth", "flow")

# What makes an objective a plain function of the set of items: no random negatives or views, no stopped gradient.
PLAIN = {
    "calmrl": {"alpha": 0.0},
    "comm": {"noise": 0.0},
    "confu": {"dropout": 0.0},
    "gated-symile": {"negatives": "all"},
    "gram": {"alpha": 0.0},
    "pmrl": {"alpha": 0.0},
    "scalar": {"alpha": 0.0, "consistency": 0.0},
    "symile": {"negatives": "all"},
    "triangle": {"alpha": 0.0},
    "vast": {"alpha": 0.0},
}


def build(name, k, d, **options):
    try:
        objective = objectives.get(name)(NAMES[:k], d, **options)
    except CalmrlError as error:
        pytest.skip(f"not defined for {k} modalities: {error}")
    return objective.double()


def batch(b, k, d, seed=0, complete=False):
    generator = torch.Generator().manual_seed(seed)
    z = torch.nn.functional.normalize(torch.randn(b, k, d, generator=generator, dtype=torch.float64), dim=-1)
    mask = torch.rand(b, k, generator=generator) < 0.7
    mask[torch.arange(b), torch.randint(k, (b,), generator=generator)] = True
    if complete:
        mask[:] = True
    imputed = torch.randn(b, k, d, generator=generator, dtype=torch.float64) * 0.1
    return z, mask, imputed


def terms(objective, z, mask, imputed, groups=None):
    if objective.generator is not None:
        objective.generator.manual_seed(0)
    return objective(z, mask, imputed, groups)


def loss(objective, z, mask, imputed, groups=None):
    return terms(objective, z, mask, imputed, groups)["loss"]


@pytest.fixture(params=objectives.names())
def name(request):
    return request.param


@pytest.mark.parametrize("k", [2, 3, 5])
def test_terms_are_scalars_and_the_loss_is_finite(name, k):
    z, mask, imputed = batch(8, k, 6)
    found = build(name, k, 6)(z, mask, imputed)
    assert {"loss", "skipped"} <= found.keys()
    assert all(value.ndim == 0 and bool(torch.isfinite(value)) for value in found.values())


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
    z, mask, imputed = batch(8, 3, 6)
    objective = build(name, 3, 6, **PLAIN.get(name, {}))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        loss(objective, z[order], mask[order], imputed[order]), loss(objective, z, mask, imputed), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", ["clip", "pmrl", "calmrl", "symile", "comm"])
def test_the_order_of_modalities_does_not_matter_to_symmetric_objectives(name):
    z, mask, imputed = batch(8, 3, 6)
    objective = build(name, 3, 6, **PLAIN.get(name, {}))
    order = [2, 0, 1]
    torch.testing.assert_close(
        loss(objective, z[:, order], mask[:, order], imputed[:, order]),
        loss(objective, z, mask, imputed),
        rtol=1e-12,
        atol=1e-12,
    )


def test_an_item_that_shows_nothing_counts_for_nothing(name):
    z, mask, imputed = batch(8, 3, 6)
    plain = {key: value for key, value in PLAIN.get(name, {}).items() if key != "alpha"}
    objective = build(name, 3, 6, **plain)
    padded = [torch.cat([part, torch.zeros_like(part[:3])]) for part in (z, mask, imputed)]
    without, with_padding = terms(objective, z, mask, imputed), terms(objective, *padded)
    torch.testing.assert_close(with_padding["loss"], without["loss"], rtol=1e-12, atol=1e-12)
    assert with_padding["skipped"] == without["skipped"] + 3


def test_the_gradient_is_finite_when_modalities_are_equal(name):
    z, mask, imputed = batch(6, 3, 6, complete=True)
    z = z[:, :1].expand(-1, 3, -1).clone().requires_grad_()
    loss(build(name, 3, 6), z, mask, imputed).backward()
    assert bool(torch.isfinite(z.grad).all())


def test_the_gradient_is_finite_when_all_items_are_equal(name):
    z, mask, imputed = batch(6, 3, 6, complete=True)
    z = z[:1].expand(6, -1, -1).clone().requires_grad_()
    loss(build(name, 3, 6), z, mask, imputed).backward()
    assert bool(torch.isfinite(z.grad).all())


def test_the_gradient_is_finite_when_embeddings_are_zero_even_at_low_temperatures(name):
    """What heads make of features that are all zero."""
    z, mask, imputed = batch(6, 3, 6, complete=True)
    z = z.clone()
    z[2], z[3, 1] = 0.0, 0.0
    cold = {"pmrl": {"uniformity_temperature": 0.005}, "calmrl": {"uniformity_temperature": 0.005}}.get(name, {})
    z = z.float().requires_grad_()
    found = terms(build(name, 3, 6, **cold).float(), z, mask, imputed.float())
    found["loss"].backward()
    assert bool(torch.isfinite(found["loss"]))
    assert bool(torch.isfinite(z.grad).all())


@pytest.mark.parametrize("shown", [[[1, 1, 1]], [[1, 0, 0]], [[0, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 1, 0]]])
def test_a_batch_with_nothing_to_contrast_gives_a_number_and_a_gradient(name, shown):
    mask = torch.tensor(shown, dtype=torch.bool)
    z, _, imputed = batch(len(shown), 3, 6)
    z.requires_grad_()
    found = terms(build(name, 3, 6), z, mask, imputed)
    assert bool(torch.isfinite(found["loss"]))
    found["loss"].backward()
    assert bool(torch.isfinite(z.grad).all())
    if not mask.any():
        assert found["loss"] == 0
        assert found["skipped"] == len(shown)


def test_the_gradient_is_that_of_finite_differences(name):
    z, mask, imputed = batch(4, 3, 4, seed=3)
    mask[:2] = True
    stopped = {"scalar": {"consistency": 0.0}, "gated-symile": {"distillation": 0.0}}
    objective = build(name, 3, 4, **stopped.get(name, {}))
    torch.autograd.gradcheck(lambda x: loss(objective, x, mask, imputed), z.requires_grad_(), atol=1e-5)


def test_the_seed_alone_decides_the_start(name):
    torch.manual_seed(1)
    first = build(name, 3, 6).state_dict()
    torch.manual_seed(2)
    second = build(name, 3, 6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_every_mix_of_patterns_in_one_batch(name, k):
    mask = torch.tensor(list(itertools.product([False, True], repeat=k))[1:]).repeat(2, 1)
    z, _, imputed = batch(len(mask), k, 6)
    assert bool(torch.isfinite(loss(build(name, k, 6), z.requires_grad_(), mask, imputed)))


def test_groups_of_one_change_nothing(name):
    z, mask, imputed = batch(8, 3, 6)
    objective = build(name, 3, 6)
    groups = torch.arange(8) * 3 - 5
    torch.testing.assert_close(
        loss(objective, z, mask, imputed, groups), loss(objective, z, mask, imputed), rtol=1e-12, atol=1e-12
    )


def test_one_group_leaves_no_negatives(name):
    z, mask, imputed = batch(6, 3, 6, complete=True)
    z = z[:1].expand(6, -1, -1).clone().requires_grad_()
    options = {key: value for key, value in PLAIN.get(name, {}).items() if key != "negatives"}
    value = loss(
        build(name, 3, 6, **options, **({"uniformity": 0.0} if name == "scalar" else {})),
        z,
        mask,
        imputed,
        torch.zeros(6, dtype=torch.long),
    )
    value.backward()
    # Equal items of one group: each candidate is as right as any other, and nothing pushes anything away.
    assert bool(torch.isfinite(value))
    across = z.grad - (z.grad * z).sum(-1, keepdim=True) * z
    if name in ("clip", "imagebind", "languagebind", "vast"):
        assert float(across.detach().abs().max()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    z, mask, imputed = batch(8, 3, 6)
    objective = build(name, 3, 6).float()
    half = terms(objective, z.to(dtype), mask, imputed)
    wide = terms(objective, z.to(dtype).float(), mask, imputed.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = terms(objective, z.to(dtype), mask, imputed)
    for key, value in half.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, wide[key], rtol=1e-5, atol=1e-5)
        assert torch.equal(value, inside[key])


def test_parameters_in_float32_serve_embeddings_in_float64(name):
    z, mask, imputed = batch(8, 3, 6)
    assert loss(build(name, 3, 6).float(), z, mask, imputed).dtype == torch.float64


def test_float32_is_float64_rounded(name):
    z, mask, imputed = batch(8, 3, 16)
    objective = build(name, 3, 16)
    exact = loss(objective, z, mask, imputed)
    rounded = loss(objective.float(), z.float(), mask, imputed.float())
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-4, atol=1e-5)


def test_a_nan_that_is_shown_shows(name):
    z, mask, imputed = batch(8, 3, 6, complete=True)
    z[2, 1] = torch.nan
    assert bool(loss(build(name, 3, 6), z, mask, imputed).isnan())


def test_draws_repeat_with_the_generator(name):
    z, mask, imputed = batch(16, 3, 6)
    objective = build(name, 3, 6)
    torch.manual_seed(1)
    first = loss(objective, z, mask, imputed)
    torch.manual_seed(2)
    assert torch.equal(first, loss(objective, z, mask, imputed))


class NoQuestions(TorchDispatchMode):
    """Refuses operations whose result the host must wait for on a device: values read back, data-dependent shapes."""

    WAITING = frozenset(
        {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim", "bincount"}
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        assert name not in self.WAITING, f"{name} makes the host wait"
        if name in ("index", "index_put", "index_put_"):
            assert not any(i is not None and i.dtype == torch.bool for i in args[1]), "an index by mask makes the host wait"
        return func(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device(name):
    z, mask, imputed = batch(8, 3, 6)
    objective = build(name, 3, 6)
    z.requires_grad_()
    groups = torch.arange(8) // 2
    with NoQuestions():
        objective(z, mask, imputed, groups)["loss"].backward()


class NoWaiting(TorchDispatchMode):
    """Refuses copies to another device that do not go on by themselves."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        moved = func(*args, **kwargs)
        if func.name().startswith("aten::_to_copy"):
            assert moved.device == args[0].device or kwargs.get("non_blocking"), "a copy to a device that waits"
        return moved


def test_a_step_runs_on_a_device_that_answers_nothing(name, monkeypatch):
    """On `meta`, tensors have no values: whatever reads one back, or mixes devices, fails. Not the CPU: the road that a GPU takes."""
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: contextlib.nullcontext())
    objective = build(name, 4, 6).to("meta")
    heads = Heads(dict.fromkeys(NAMES[:4], 5), 6).double().to("meta")
    features = [torch.empty(8, 5, dtype=torch.float64, device="meta") for _ in range(4)]
    mask = torch.empty(8, 4, dtype=torch.bool, device="meta")
    imputed = torch.empty(8, 4, 6, dtype=torch.float64, device="meta")
    groups = torch.empty(8, dtype=torch.int64, device="meta")
    for mode in (contextlib.nullcontext(), NoWaiting()):  # the first time, constants are sent to the device
        with mode:
            objective(heads(features, mask), mask, imputed, groups)["loss"].backward()
    assert all(parameter.grad is not None for parameter in heads.parameters())


@pytest.mark.parametrize(
    ("z", "mask", "said"),
    [
        ((4, 3), (4, 3), r"expects embeddings \[B, 3, 6\] \(vision, audio, caption\), got \[4, 3\]"),
        ((4, 2, 6), (4, 2), r"got \[4, 2, 6\]"),
        ((4, 3, 6), (4, 2), r"expects a bool mask \[4, 3\]"),
    ],
)
def test_shapes_that_do_not_fit(name, z, mask, said):
    with pytest.raises(CalmrlError, match=said):
        build(name, 3, 6)(torch.zeros(z), torch.ones(mask, dtype=torch.bool))
