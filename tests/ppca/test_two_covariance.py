"""The two-covariance model against definitions written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calmrl_lab.ppca.two_covariance import TwoCovariance


def _items(seed: int, n: int, d: int, k: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.linspace(2, 0.5, d, dtype=torch.float64)
    rows = [common + 0.7 * torch.randn(n, d, generator=generator, dtype=torch.float64) + m for m in range(k)]
    mask = torch.rand(n, k, generator=generator) < 0.7
    mask[:3] = True
    return rows, mask


def _covariance(rows: list[torch.Tensor], mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """T and B, item by item and pair by pair."""
    k, d = len(rows), rows[0].shape[1]
    means = [torch.stack([rows[m][i] for i in range(len(mask)) if mask[i, m]]).mean(dim=0) for m in range(k)]
    total, count = torch.zeros(d, d, dtype=torch.float64), 0
    between, pairs = torch.zeros(d, d, dtype=torch.float64), 0
    for i in range(len(mask)):
        for a in range(k):
            if not mask[i, a]:
                continue
            x = rows[a][i] - means[a]
            total, count = total + torch.outer(x, x), count + 1
            for b in range(k):
                if b != a and mask[i, b]:
                    between, pairs = between + torch.outer(x, rows[b][i] - means[b]), pairs + 1
    return total / count, between / pairs


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 4))
def test_moments_are_those_of_pairs_of_rows(seed: int, d: int, k: int) -> None:
    rows, mask = _items(seed, 60, d, k)
    model = TwoCovariance.fit(rows, mask)
    total, between = _covariance(rows, mask)
    values = torch.linalg.eigvalsh((between + between.T) / 2)
    found = model.axes @ model.between @ model.axes.T
    if values.min() > 1e-6 * total.trace() / d:
        torch.testing.assert_close(found, (between + between.T) / 2)
    both = model.axes @ (model.between + model.within) @ model.axes.T
    if torch.linalg.eigvalsh(total - (between + between.T) / 2).min() > 1e-3 * total.trace() / d and values.min() > 0:
        torch.testing.assert_close(both, total)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 10.0), st.floats(0.0, 1.0))
def test_likelihood_ratio_is_that_of_three_gaussians(seed: int, within: float, between: float) -> None:
    rows, mask = _items(seed, 50, 4, 2)
    model = TwoCovariance.fit(rows, mask).shrunk(within, between)
    maps = model.latent_maps(["a", "b"])
    b, w = (model.axes @ part @ model.axes.T for part in (model.between, model.within))
    joint = torch.cat([torch.cat([b + w, b], dim=1), torch.cat([b, b + w], dim=1)])
    x, y = rows[0][:3], rows[1][:5]
    h, g = maps.information_vector(0, x), maps.information_vector(1, y)
    found = maps.log_density_ratio(0, [1], h, g)
    for i in range(len(x)):
        for j in range(len(y)):
            ours, theirs = x[i] - model.means[0], y[j] - model.means[1]
            expected = _log_density(torch.cat([ours, theirs]), joint) - _log_density(ours, b + w) - _log_density(theirs, b + w)
            assert math.isclose(float(found[i, j]), expected, rel_tol=1e-6, abs_tol=1e-6)


def _log_density(x: torch.Tensor, covariance: torch.Tensor) -> float:
    sign, log = torch.linalg.slogdet(2 * math.pi * covariance)
    assert sign > 0
    return float(-0.5 * (log + x @ torch.linalg.solve(covariance, x)))


def test_much_shrinkage_ranks_as_centred_inner_products() -> None:
    rows, mask = _items(3, 80, 6, 2)
    maps = TwoCovariance.fit(rows, mask).shrunk(1e9, 1e9).latent_maps(["a", "b"])
    x, y = (part[:20] - part[mask[:, j]].mean(dim=0) for j, part in enumerate(rows))
    y = y / y.norm(dim=1, keepdim=True)  # a ratio counts the length of the candidate too
    h, g = maps.information_vector(0, rows[0][:20]), maps.information_vector(1, y + maps.centres[1])
    found = maps.log_density_ratio(0, [1], h, g)
    assert torch.equal(found.argsort(dim=1), (x @ y.T).argsort(dim=1))


@pytest.mark.parametrize(("n", "d"), [(12, 40), (60, 20)])
def test_kept_axes_are_the_widest(n: int, d: int) -> None:
    rows, _ = _items(1, n, d, 2)
    mask = torch.ones(n, 2, dtype=torch.bool)
    model = TwoCovariance.fit(rows, mask, axes=6)
    everything = torch.cat([part - part.mean(dim=0) for part in rows])
    _, _, right = torch.linalg.svd(everything, full_matrices=False)
    torch.testing.assert_close(model.axes.T @ model.axes, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(model.axes @ model.axes.T, right[:6].T @ right[:6])


def test_no_common_space_is_refused() -> None:
    rows = [torch.randn(5, 3), torch.randn(5, 4)]
    with pytest.raises(ValueError, match="one dimension"):
        TwoCovariance.fit(rows, torch.ones(5, 2, dtype=torch.bool))
    apart = torch.tensor([[True, False], [False, True]])
    with pytest.raises(ValueError, match="together"):
        TwoCovariance.fit([torch.randn(2, 3), torch.randn(2, 3)], apart)
