"""The fast kernels against plain formulations, and where plain formulations fail."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives import references

from calmrl_lab.objectives.scalar import weighted_centroid_cosines
from calmrl_lab.objectives.terms.uniformity import instance_uniformity
from calmrl_lab.objectives.terms.volume import volumes
from calmrl_lab.objectives.triangle import squared_parallelograms


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def items_and_mask(n, m, d, seed):
    mask = torch.rand(n, m, generator=torch.Generator().manual_seed(seed)) < 0.7
    return unit(n, m, d, seed=seed).masked_fill(~mask.unsqueeze(-1), 0.0), mask


@given(st.integers(1, 5), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_volumes_are_determinants(m, seed):
    queries, (items, mask) = unit(4, 8, seed=seed + 1), items_and_mask(5, m, 8, seed)
    ours = volumes(queries, items, mask)
    for i in range(4):
        for j in range(5):
            expected = references.volume(queries[i], [items[j, a] for a in range(m) if mask[j, a]]).item()
            assert ours[i, j].item() ** 2 == pytest.approx(expected**2, abs=1e-10)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_gradient_of_volumes(m, paired):
    queries, (items, mask) = unit(4, 6, seed=7), items_and_mask(4, m, 6, 3)
    torch.autograd.gradcheck(
        lambda q, z: volumes(q, z.masked_fill(~mask.unsqueeze(-1), 0.0), mask, 1e-6, paired),
        (queries.requires_grad_(), items.requires_grad_()),
        atol=1e-6,
    )


def test_nearly_collinear_modalities_keep_their_volume_in_float32():
    """An imputed near-copy, 1e-4 away: the float32 determinant is off by a large part, the Schur complement is not."""
    queries, items = unit(16, 64, seed=1), unit(16, 3, 64, seed=2)
    items[:, 2] = torch.nn.functional.normalize(items[:, 1] + 1e-4 * unit(16, 64, seed=3), dim=1)
    rounded = items.float()
    mask = torch.ones(16, 3, dtype=torch.bool)
    exact = volumes(queries, rounded.double(), mask) ** 2
    ours = volumes(queries.float(), rounded, mask) ** 2
    stacked = torch.cat([queries.float()[:, None, None].expand(-1, 16, -1, -1), rounded[None].expand(16, -1, -1, -1)], dim=2)
    plain = torch.linalg.det(stacked @ stacked.mT)
    assert ((ours.double() - exact) / exact).abs().max() < 1e-4
    assert ((plain.double() - exact) / exact).abs().median() > 1e-2


def test_copied_modalities_span_nothing_and_have_a_finite_gradient():
    queries, items = unit(4, 8, seed=1), unit(4, 3, 8, seed=2)
    items[:, 2] = items[:, 1]
    items = items.requires_grad_()
    found = volumes(queries, items, torch.ones(4, 3, dtype=torch.bool), 1e-8, paired=True)
    assert found.max() < 2e-4
    found.sum().backward()
    assert torch.isfinite(items.grad).all()


def test_a_zero_vector_in_place_of_a_hidden_modality_would_match_everything():
    queries, items = unit(4, 8, seed=1), unit(4, 2, 8, seed=2)
    items[:, 1] = 0.0
    hidden = torch.tensor([[True, False]]).expand(4, -1)
    cosines = queries @ items[:, 0].T
    torch.testing.assert_close(volumes(queries, items, hidden) ** 2, 1 - cosines**2, atol=1e-11, rtol=0)
    assert volumes(queries, items, torch.ones_like(hidden)).max() < 1e-5


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_areas_are_half_base_times_height(seed):
    queries, items = unit(4, 8, seed=seed), unit(5, 2, 8, seed=seed + 1)
    ours = squared_parallelograms(queries, items)
    for i in range(4):
        for j in range(5):
            expected = references.triangle_area(queries[i], items[j, 0], items[j, 1]).item()
            assert ours[i, j].sqrt().item() / 2 == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 4), st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_weighted_centroids(m, seed):
    queries, (items, mask) = unit(4, 8, seed=seed + 1), items_and_mask(5, m, 8, seed)
    ours = weighted_centroid_cosines(queries, items, mask, 0.1)
    for i in range(4):
        for j in range(5):
            shown = [items[j, a] for a in range(m) if mask[j, a]]
            expected = references.centroid_cosine(queries[i], shown, 0.1).item() if shown else 0.0
            assert ours[i, j].item() == pytest.approx(expected, abs=1e-9)


def plain_uniformity(vectors, present, temperature, squared):
    chosen = vectors[present]
    if not len(chosen):
        return vectors.sum() * 0.0
    cosines = chosen @ chosen.T
    logits = (cosines**2 if squared else cosines) / temperature
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(chosen)))


@given(st.integers(1, 9), st.integers(0, 10_000), st.booleans())
@settings(max_examples=30, deadline=None)
def test_fused_uniformity_is_plain_cross_entropy(n, seed, squared):
    present = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.8
    ours, theirs = unit(n, 6, seed=seed).requires_grad_(), unit(n, 6, seed=seed).requires_grad_()
    value = instance_uniformity(ours, present, 0.1, None, squared)
    reference = plain_uniformity(theirs, present, 0.1, squared)
    torch.testing.assert_close(value, reference, atol=1e-12, rtol=1e-12)
    value.backward()
    reference.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-11, rtol=1e-11)


def test_fused_uniformity_with_groups():
    vectors = unit(6, 4, seed=3).requires_grad_()
    same = torch.tensor([0, 0, 1, 2, 2, 2])[:, None] == torch.tensor([0, 0, 1, 2, 2, 2])
    value = instance_uniformity(vectors, torch.ones(6, dtype=torch.bool), 0.2, same)
    logits = (vectors @ vectors.T / 0.2).masked_fill(same & ~torch.eye(6, dtype=torch.bool), -torch.inf)
    torch.testing.assert_close(value, torch.nn.functional.cross_entropy(logits, torch.arange(6)))
    torch.autograd.gradcheck(lambda x: instance_uniformity(x, torch.ones(6, dtype=torch.bool), 0.2, same), vectors)
