"""Canonical correlations against their definition."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calmrl_lab.linalg.canonical_correlation import CanonicalCorrelation


def _principal(rows: torch.Tensor) -> torch.Tensor:
    """The rows about their mean on their principal axes."""
    centred = rows - rows.mean(dim=0)
    return centred @ torch.linalg.svd(centred, full_matrices=False)[2].T


def _modalities(seed: int, n: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    y = torch.cat([x[:, :2] @ torch.randn(2, 2, generator=generator, dtype=torch.float64), x[:, 2:3] + x[:, 3:]], dim=1)
    return _principal(x), _principal(y + 0.5 * torch.randn(n, 3, generator=generator, dtype=torch.float64))


def _fit(x: torch.Tensor, y: torch.Tensor, regularisation: float, most: int) -> CanonicalCorrelation:
    n = len(x)
    return CanonicalCorrelation.of(x.square().mean(dim=0), y.square().mean(dim=0), x.T @ y / n, regularisation, most)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_directions_are_white_and_correlated_in_order(seed: int) -> None:
    x, y = _modalities(seed)
    found = _fit(x, y, 0.0, 10)
    ours, theirs = x @ found.left, y @ found.right
    identity = torch.eye(3, dtype=torch.float64)  # three directions: the smaller of the two dimensions
    torch.testing.assert_close(ours.T @ ours / len(x), identity)
    torch.testing.assert_close(theirs.T @ theirs / len(x), identity)
    torch.testing.assert_close(ours.T @ theirs / len(x), torch.diag(found.correlations))
    assert bool((found.correlations.diff() <= 1e-12).all())


def test_much_regularisation_gives_directions_of_largest_covariance() -> None:
    x, y = _modalities(0)
    found = _fit(x, y, 1e9, 1)
    u, _, v = torch.linalg.svd(x.T @ y)
    assert abs(float(torch.nn.functional.cosine_similarity(found.left[:, 0], u[:, 0], dim=0))) > 1 - 1e-9
    assert abs(float(torch.nn.functional.cosine_similarity(found.right[:, 0], v[0], dim=0))) > 1 - 1e-9


def test_a_constant_coordinate_is_left_out() -> None:
    x, y = _modalities(1)
    found = _fit(torch.cat([x, torch.zeros(len(x), 1, dtype=torch.float64)], dim=1), y, 0.0, 3)
    assert bool(found.left.isfinite().all())
    assert float(found.left[4].abs().max()) == 0.0


def test_weighted_coordinates_have_the_correlations_as_weights() -> None:
    x, y = _modalities(2)
    found = _fit(x, y, 0.1, 3)
    left, right = found.weighted()
    expected = (x @ found.left * found.correlations) @ (y @ found.right).T
    torch.testing.assert_close((x @ left) @ (y @ right).T, expected)
