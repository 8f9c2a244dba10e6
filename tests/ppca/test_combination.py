"""Gains of predictions that are added: the least squares of the rows, never negative, and only where held-out items gain by them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calmrl_lab.data.patterns import observe
from calmrl_lab.imputers import PPCA
from calmrl_lab.ppca.combination import CombinedAgreement, improved_gains, sum_of
from calmrl_lab.ppca.em import Parameters
from calmrl_lab.ppca.held_out import conditional_mean
from calmrl_lab.ppca.statistics import Statistics


def counted(truth, predictions):
    flat = np.stack([part.ravel() for part in predictions])
    return CombinedAgreement(len(truth), float(np.square(truth).sum()), flat @ truth.ravel(), flat @ flat.T)


@given(seed=st.integers(0, 10_000), c=st.integers(1, 3))
def test_the_error_is_that_of_the_rows_and_no_other_gains_are_better(seed, c):
    rng = np.random.default_rng(seed)
    truth, predictions = rng.normal(size=(30, 4)), rng.normal(size=(c, 30, 4))
    predictions[0] += truth * rng.uniform(-1, 1)
    agreement = counted(truth, predictions)
    best = agreement.best_gains(2.0)
    assert (best >= 0).all()
    assert agreement.error(best) == pytest.approx(np.square(truth - np.tensordot(best, predictions, 1)).sum())
    for other in rng.uniform(0, 2, size=(50, c)):
        assert agreement.error(best) <= agreement.error(other) + 1e-9


def test_two_predictions_that_are_the_same_share_one_gain():
    truth = np.random.default_rng(0).normal(size=(20, 3))
    agreement = counted(truth, [truth, truth])
    assert agreement.error(agreement.best_gains(2.0)) == pytest.approx(0.0, abs=1e-9)
    assert counted(truth, [0 * truth, 0 * truth]).best_gains(2.0).tolist() == [0.0, 0.0]


def test_gains_change_only_where_every_fold_says_so():
    rng = np.random.default_rng(0)
    truth = [rng.normal(size=(40, 5)) for _ in range(4)]
    first = [part + rng.normal(size=part.shape) for part in truth]
    second = [part + rng.normal(size=part.shape) for part in truth]
    noise = [rng.normal(size=part.shape) for part in truth]
    helpful = [counted(*of) for of in zip(truth, zip(first, second, strict=True), strict=True)]
    gains, error = improved_gains(helpful, (0.5, 0.0), 0.005, 1.0, 2.0)
    assert gains[1] > 0.2
    assert error == pytest.approx(sum_of(helpful).error(gains) / 160)
    useless = [counted(*of) for of in zip(truth, zip(first, noise, strict=True), strict=True)]
    assert improved_gains(useless, (0.5, 0.0), 0.02, 1.0, 2.0) is None
    assert improved_gains(helpful[:1], (0.5, 0.0), 0.005, 1.0, 2.0) is None


def test_the_conditional_mean_is_what_ppca_fills_in():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(80, 3))
    rows = [latent @ rng.normal(size=(3, d)) + rng.normal(size=(80, d)) + 2 for d in (5, 4, 6)]
    mask = np.ones((80, 3), dtype=bool)
    model = PPCA(2).fit(rows, mask)
    statistics = Statistics.of(observe(rows, mask))
    weights = torch.cat([torch.from_numpy(part) for part in model.weights])
    mean = torch.cat([torch.from_numpy(part) - shift for part, shift in zip(model.means, statistics.shift, strict=True)])
    reference = [torch.full((d,), 0.1, dtype=torch.float64) for d in (5, 4, 6)]
    found = conditional_mean(Parameters(weights, mean, torch.from_numpy(model.noise)), ((0, 2), 1), (5, 4, 6), reference)
    deviations = torch.cat([torch.from_numpy(rows[j]) - statistics.shift[j] - reference[j] for j in (0, 2)], dim=1)
    shown = mask.copy()
    shown[:, 1] = False
    filled = model.impute(rows, shown)[1]
    np.testing.assert_allclose((found(deviations) + reference[1] + statistics.shift[1]).numpy(), filled, atol=1e-10)
