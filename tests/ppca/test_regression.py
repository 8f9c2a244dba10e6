"""Ridge regression from statistics: the same as from rows, in both forms, and its held-out agreement as counted row by row."""

import numpy as np
import pytest
import torch

from calmrl_lab.data.patterns import observe
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
    found = sources.agreements(held_out)
    x, y = deviations(rows, mask, observed, missing, reference)
    u, v = deviations(held_rows, held_mask, observed, missing, reference)
    second = x.T @ x / len(x)
    positive = np.linalg.eigvalsh(second)
    unit = positive[positive > 1e-9 * positive[-1]].mean()
    for strength, agreement in zip(STRENGTHS, found, strict=True):
        weights = np.linalg.solve(second + strength * unit * np.eye(len(second)), x.T @ y / len(x))
        predicted = u @ weights
        counted = [len(u), np.square(v).sum(), (v * predicted).sum(), np.square(predicted).sum()]
        told = [agreement.count, agreement.energy, agreement.cross, agreement.power]
        np.testing.assert_allclose(told, counted, rtol=1e-6)
        regression = sources.at(strength, statistics)
        np.testing.assert_allclose(regression(torch.from_numpy(u)).numpy(), predicted, rtol=1e-4, atol=1e-5)


def test_too_few_items_give_none():
    rows, mask = rows_and_mask(12)
    statistics = Statistics.of(observe(rows, mask))
    assert Sources.of(statistics, ((0,), 1), statistics.shift, 100) is None
