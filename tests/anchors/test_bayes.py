"""Bayes anchor: best in expectation, its promised gain is kept on data from the model, and the gate keeps its harm rate."""

import numpy as np
import pytest
import torch

from calmrl_lab.anchors.bayes import anchor_posterior, gated_anchor, least_items, realised_gain, risk_controlling_threshold
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers.ppca import PPCA

N, K, D, Q = 400, 4, 12, 4


@pytest.fixture(scope="module")
def fitted():
    """Unit embeddings with a common part, and PPCA fitted on half of them with gaps."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(K, D, Q)) * 0.5 + rng.normal(size=(1, D, Q))
    centre = 3 * rng.normal(size=D) / D**0.5
    z = np.einsum("kdq,nq->nkd", weights, rng.normal(size=(2 * N, Q))) + centre + 0.8 * rng.normal(size=(2 * N, K, D))
    z = torch.from_numpy(z / np.linalg.norm(z, axis=2, keepdims=True))
    mask = torch.from_numpy(rng.random((2 * N, K)) < 0.6)
    mask[torch.arange(2 * N), torch.from_numpy(rng.integers(K, size=2 * N))] = True
    imputer = PPCA(Q).fit(list(z[:N].unbind(1)), mask[:N], iterations=30)
    return imputer, z[N:], mask[N:]


def posterior_of(fitted, seed=0, **options):
    imputer, z, mask = fitted
    return anchor_posterior(imputer, z, mask, torch.Generator().manual_seed(seed), **options)


def test_the_promised_gain_is_kept_on_average(fitted):
    posterior = posterior_of(fitted)
    realised = realised_gain(posterior, fitted[1])
    some = ~fitted[2].all(dim=1)
    assert float(posterior.gain[some].mean()) > 0.02
    assert float(realised[some].mean()) == pytest.approx(float(posterior.gain[some].mean()), rel=0.25)
    assert np.corrcoef(posterior.gain[some], realised[some])[0, 1] > 0.3


def test_it_is_no_worse_than_the_plug_in_anchor(fitted):
    from calmrl_lab.linalg.spectrum import spectrum

    imputer, z, mask = fitted
    truth = spectrum(z, torch.ones_like(mask)).anchor
    filled = torch.stack(imputer.impute(list(z.unbind(1)), mask), dim=1)
    plug_in = spectrum(filled, torch.ones_like(mask)).anchor
    best = posterior_of(fitted).anchor
    assert float((best * truth).sum(1).square().mean()) > float((plug_in * truth).sum(1).square().mean()) - 0.005


def test_what_is_complete_stays_and_what_shows_nothing_gets_the_prior(fitted):
    imputer, z, mask = fitted
    mask = mask.clone()
    mask[0], mask[1] = True, False
    posterior = anchor_posterior(imputer, z, mask, torch.Generator().manual_seed(0))
    assert torch.allclose(posterior.anchor[0], posterior.observed_anchor[0])
    assert posterior.gain[0] == 0
    assert posterior.concentration[0] == 1
    assert posterior.observed_anchor[1].norm() == 0
    assert posterior.anchor[1].norm() == pytest.approx(1)
    gated = gated_anchor(posterior, float("inf"))
    assert torch.allclose(gated[2:], posterior.observed_anchor[2:])
    assert torch.allclose(gated[1], posterior.anchor[1])


@pytest.mark.slow
def test_the_same_generator_gives_the_same_anchors(fitted):
    one, two, other = posterior_of(fitted, 1), posterior_of(fitted, 1), posterior_of(fitted, 2)
    assert torch.equal(one.anchor, two.anchor)
    assert not torch.equal(one.anchor, other.anchor)


def test_signs_follow_the_observed_anchor(fitted):
    posterior = posterior_of(fitted)
    assert bool(((posterior.anchor * posterior.observed_anchor).sum(1) >= 0).all())


def test_the_gate_by_hand():
    # Of 100 items at level .3 as many harmed ones may pass as come from a rate of .3 with probability .1 at most, by Hoeffding.s bound.
    predicted = np.linspace(1.0, 0.01, 100)
    realised = np.where(np.arange(100) % 2, -0.1, 0.1)

    def tail(harmed, n=100, level=0.3):
        mean = harmed / n
        return np.exp(-n * (mean * np.log(mean / level) + (1 - mean) * np.log((1 - mean) / (1 - level))))

    most = max(harmed for harmed in range(1, 30) if tail(harmed) <= 0.1)
    threshold = risk_controlling_threshold(predicted, realised, 0.3)
    assert ((predicted > threshold) & (realised < 0)).sum() == most
    assert threshold == predicted[2 * most + 1]
    assert risk_controlling_threshold(predicted, np.abs(realised), 0.3) == 0.0


@pytest.mark.parametrize(("level", "least"), [(0.05, 45), (0.1, 22), (0.5, 4)])
def test_fewer_items_than_a_promise_takes_calibrate_nothing(level, least):
    assert least_items(level) == least
    promised = np.ones(least)
    assert risk_controlling_threshold(promised, promised, level) == 0.0
    assert risk_controlling_threshold(promised[1:], promised[1:], level) == float("inf")


def test_the_gate_seldom_misses_its_harm_rate_on_new_items():
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(300):
        predicted = rng.random(100)
        realised = predicted - 0.9 * rng.random(100)
        threshold = risk_controlling_threshold(predicted, realised, 0.1)
        new = rng.random(4000)
        rates.append(((new > threshold) & (new < 0.9 * rng.random(4000))).mean())
    assert np.mean(np.array(rates) > 0.1) <= 0.1
    assert np.mean(rates) > 0.02


def test_requests_that_make_no_sense(fitted):
    imputer, z, mask = fitted
    with pytest.raises(CalmrlError, match="do not fit"):
        anchor_posterior(imputer, z, mask[:, :2], torch.Generator())
    with pytest.raises(CalmrlError, match="at least 4"):
        anchor_posterior(imputer, z, mask, torch.Generator(), samples=2)
    with pytest.raises(CalmrlError, match="level"):
        risk_controlling_threshold(np.ones(3), np.ones(3), 1.5)
    with pytest.raises(CalmrlError, match="do not fit"):
        risk_controlling_threshold(np.ones(3), np.ones(4))
