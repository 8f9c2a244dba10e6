"""Ridge regression from statistics: the same as from rows, in both forms, and its held-out agreement beside another prediction, row by row."""

import numpy as np
import pytest
import torch

from calmrl_lab.data.patterns import observe
from calmrl_lab.ppca.combination import AffineMap, sum_of
from calmrl_lab.ppca.regression import STRENGTHS, Sources
from calmrl_lab.ppca.statistics import Statistics

DIMS = (6, 9, 4)


def rows_and_mask(n, seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, 5))
    rows = [latent @ np.random.default_rng(d).normal(size=(5, d)) + rng.normal(size=(n, d)) + 1.0 for d in DIMS]
    mask = rng.random((n, 3)) < 0.8
    mask[:3] = True
    return rows, mask


def deviations(rows, mask, observed, missing, reference):
    shown = mask[:, [*observed, missing]].all(axis=1)
    x = np.concatenate([rows[j][shown] - reference[j] for j in observed], axis=1)
    return x, rows[missing][shown] - reference[missing]


@pytest.mark.parametrize("n", [12, 400])
@pytest.mark.parametrize(("observed", "missing"), [((0,), 1), ((0, 2), 1), ((1, 2), 0)])
def test_it_is_ridge_regression_on_the_rows(n, observed, missing):
    rows, mask = rows_and_mask(n)
    held_rows, held_mask = rows_and_mask(60, seed=1)
    statistics = Statistics.of(observe(rows, mask))
    held_out = Statistics.of(observe(held_rows, held_mask), statistics.shift)
    reference = [np.asarray(shift) for shift in statistics.shift]
    zeros = [torch.zeros_like(shift) for shift in statistics.shift]
    sources = Sources.of(statistics, (observed, missing), zeros, 1)
    generator = torch.Generator().manual_seed(0)
    wide, narrow = sum(DIMS[j] for j in observed), DIMS[missing]
    left, right, offset = (torch.randn(*size, generator=generator).double() for size in ((wide, 2), (2, narrow), (narrow,)))
    other = AffineMap(left, right, offset)
    found = sources.beside(held_out, other)
    x, y = deviations(rows, mask, observed, missing, reference)
    u, v = deviations(held_rows, held_mask, observed, missing, reference)
    second = x.T @ x / len(x)
    positive = np.linalg.eigvalsh(second)
    unit = positive[positive > 1e-9 * positive[-1]].mean()
    beside = other(torch.from_numpy(u)).numpy()
    for strength, agreement in zip(STRENGTHS, found, strict=True):
        weights = np.linalg.solve(second + strength * unit * np.eye(len(second)), x.T @ y / len(x))
        predicted = u @ weights
        assert agreement.count == len(u)
        told = [agreement.energy, *agreement.cross, *agreement.power.ravel()]
        counted = [np.square(v).sum(), (v * beside).sum(), (v * predicted).sum(), np.square(beside).sum()]
        counted += [(beside * predicted).sum()] * 2 + [np.square(predicted).sum()]
        np.testing.assert_allclose(told, counted, rtol=1e-6, atol=1e-6 * max(counted))
        regression = sources.at(strength, statistics)
        np.testing.assert_allclose(regression(torch.from_numpy(u)).numpy(), predicted, rtol=1e-4, atol=1e-5)
        half = sources.at(strength, statistics, gain=0.5)
        np.testing.assert_allclose(half(torch.from_numpy(u)).numpy(), predicted / 2, rtol=1e-4, atol=1e-5)


def test_too_few_items_give_none():
    rows, mask = rows_and_mask(12)
    statistics = Statistics.of(observe(rows, mask))
    assert Sources.of(statistics, ((0,), 1), statistics.shift, 100) is None


def test_held_out_items_in_moments_agree_as_those_in_rows():
    rows, mask = rows_and_mask(60)
    held_rows, held_mask = rows_and_mask(500, seed=1)
    statistics = Statistics.of(observe(rows, mask))
    zeros = [torch.zeros_like(shift) for shift in statistics.shift]
    other = AffineMap(torch.ones(10, 1).double(), torch.ones(1, 9).double(), torch.arange(9).double())
    sources = Sources.of(statistics, ((0, 2), 1), zeros, 1)
    whole = Statistics.of(observe(held_rows, held_mask), statistics.shift)
    assert whole.patterns[0, 1, 2].moment is not None
    few = [
        Statistics.of(observe([r[i : i + 5] for r in held_rows], held_mask[i : i + 5]), statistics.shift)
        for i in range(0, 500, 5)
    ]
    assert all(sums.moment is None for part in few for sums in part.patterns.values())
    by_rows = [sum_of(parts) for parts in zip(*(sources.beside(part, other) for part in few), strict=True)]
    for ours, theirs in zip(sources.beside(whole, other), by_rows, strict=True):
        assert ours.count == theirs.count
        assert ours.energy == pytest.approx(theirs.energy)
        np.testing.assert_allclose(ours.cross, theirs.cross, rtol=1e-8)
        np.testing.assert_allclose(ours.power, theirs.power, rtol=1e-8)
