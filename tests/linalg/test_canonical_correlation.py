"""Canonical correlations against their definition."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calmrl_lab.linalg.canonical_correlation import CanonicalCorrelation


def _moments(seed: int, n: int = 80) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x = torch.cat([common, torch.randn(n, 2, generator=generator, dtype=torch.float64)], dim=1)
    y = torch.cat([common @ torch.randn(2, 2, generator=generator, dtype=torch.float64), x[:, 2:3] + x[:, 3:]], dim=1)
    y = y + 0.5 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    return x, y, x.T @ x / n, y.T @ y / n, x.T @ y / n


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_directions_are_white_and_correlated_in_order(seed: int) -> None:
    x, y, left, right, cross = _moments(seed)
    found = CanonicalCorrelation.of(left, right, cross, 0.0, 10)
    ours, theirs = x @ found.left, y @ found.right
    # Three directions at most: the smaller of the two dimensions.
    identity = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(ours.T @ ours / len(x), identity)
    torch.testing.assert_close(theirs.T @ theirs / len(x), identity)
    torch.testing.assert_close(ours.T @ theirs / len(x), torch.diag(found.correlations))
    assert bool((found.correlations.diff() <= 1e-12).all())


def test_much_regularisation_gives_directions_of_largest_covariance() -> None:
    _, _, left, right, cross = _moments(0)
    found = CanonicalCorrelation.of(left, right, cross, 1e9, 1)
    u, _, v = torch.linalg.svd(cross)
    assert abs(float(torch.nn.functional.cosine_similarity(found.left[:, 0], u[:, 0], dim=0))) > 1 - 1e-9
    assert abs(float(torch.nn.functional.cosine_similarity(found.right[:, 0], v[0], dim=0))) > 1 - 1e-9


def test_a_constant_coordinate_is_left_out() -> None:
    _, _, left, right, cross = _moments(1)
    wide = torch.zeros(5, 5, dtype=torch.float64)
    wide[:4, :4] = left
    found = CanonicalCorrelation.of(wide, right, torch.cat([cross, torch.zeros(1, 3, dtype=torch.float64)]), 0.0, 3)
    assert bool(found.left.isfinite().all()) and float(found.left[4].abs().max()) == 0.0
