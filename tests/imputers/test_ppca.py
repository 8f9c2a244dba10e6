"""PPCA: exact EM on statistics follows plain per-item EM; imputation and likelihood are those of the dense Gaussian."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from calmrl_lab.data.patterns import observe
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.imputers.ppca_private import PrivatePPCA
from calmrl_lab.ppca.statistics import Statistics


def per_item_em(embeddings, mask, start, iterations):
    """Textbook EM, one item at a time, with the joint M-step over [W mu]; returns parameters and the likelihood before each
    step."""
    weights, means, noise = [w.copy() for w in start.weights], [mu.copy() for mu in start.means], np.array(start.noise)
    k, q = len(weights), weights[0].shape[1]
    likelihoods = []
    for turn in range(iterations + 1):
        cross = [np.zeros((w.shape[0], q + 1)) for w in weights]
        square = [np.zeros((q + 1, q + 1)) for _ in weights]
        total, count, energy = 0.0, np.zeros(k), np.zeros(k)
        for i in range(len(mask)):
            shown = np.flatnonzero(mask[i])
            if len(shown) == 0:
                continue
            precision, b, quadratic = np.eye(q), np.zeros(q), 0.0
            for m in shown:
                residual = embeddings[m][i] - means[m]
                precision += weights[m].T @ weights[m] / noise[m]
                b += weights[m].T @ residual / noise[m]
                quadratic += residual @ residual / noise[m] + len(residual) * np.log(2 * np.pi * noise[m])
            variance = np.linalg.inv(precision)
            latent = variance @ b
            total -= 0.5 * (quadratic - b @ latent + np.linalg.slogdet(precision)[1])
            extended = np.append(latent, 1.0)
            moment = np.outer(extended, extended)
            moment[:q, :q] += variance
            for m in shown:
                cross[m] += np.outer(embeddings[m][i], extended)
                square[m] += moment
                count[m] += 1
                energy[m] += embeddings[m][i] @ embeddings[m][i]
        likelihoods.append(total)
        if turn == iterations:
            break
        for m in range(k):
            joint = np.linalg.solve(square[m], cross[m].T).T
            weights[m], means[m] = joint[:, :q], joint[:, q]
            noise[m] = (energy[m] - (joint * cross[m]).sum()) / (count[m] * len(means[m]))
    return SimpleNamespace(weights=weights, means=means, noise=noise, log_likelihoods=np.array(likelihoods))


def model(dims, q, seed):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(d, q)) for d in dims]
    means = [rng.normal(size=d) for d in dims]
    return SimpleNamespace(weights=weights, means=means, noise=rng.uniform(0.3, 1.5, size=len(dims)))


def draw(truth, n, seed):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, truth.weights[0].shape[1]))
    return [
        latent @ w.T + mu + np.sqrt(s) * rng.normal(size=(n, len(mu)))
        for w, mu, s in zip(truth.weights, truth.means, truth.noise, strict=True)
    ]


def random_mask(n, k, seed, rate=0.6):
    rng = np.random.default_rng(seed)
    mask = rng.random((n, k)) < rate
    mask[0] = True
    mask[1] = False
    return mask


def with_holes(embeddings, mask):
    return [np.where(mask[:, [j]], value, np.nan) for j, value in enumerate(embeddings)]


def dense(parameters):
    """Mean and covariance of all coordinates together."""
    w = np.concatenate(parameters.weights)
    noise = np.concatenate([np.full(len(mu), s) for mu, s in zip(parameters.means, parameters.noise, strict=True)])
    return np.concatenate(parameters.means), w @ w.T + np.diag(noise)


def coordinates(dims, row):
    return np.repeat(row, dims)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(dims=st.lists(st.integers(1, 6), min_size=2, max_size=6), seed=st.integers(0, 10**6), rate=st.floats(0.35, 0.95))
def test_statistics_em_follows_the_per_item_em(dims, seed, rate):
    q = min(3, sum(dims) - 1)
    embeddings = draw(model(dims, q, seed), 40, seed + 1)
    mask = random_mask(40, len(dims), seed + 2, rate)
    start = model(dims, q, seed + 3)
    slow = per_item_em(embeddings, mask, start, 5)
    fast = PPCA(latent_dim=q).fit(with_holes(embeddings, mask), mask, iterations=5, start=start)
    for name in ("weights", "means"):
        for a, b in zip(getattr(fast, name), getattr(slow, name), strict=True):
            assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    assert_allclose(fast.noise, slow.noise, rtol=1e-10)
    assert_allclose(fast.log_likelihoods, slow.log_likelihoods, rtol=1e-11)
    assert len(fast.log_likelihoods) == 6


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6])
def test_statistics_em_follows_the_per_item_em_over_every_pattern(k):
    dims = (3, 1, 5, 2, 4, 6)[:k]
    patterns = (np.arange(2**k)[:, None] >> np.arange(k) & 1).astype(bool)
    mask = np.repeat(patterns, np.arange(2**k) % 3 + 1, axis=0)
    embeddings = draw(model(dims, 2, k), len(mask), k + 1)
    start = model(dims, 2, k + 2)
    slow = per_item_em(embeddings, mask, start, 4)
    fast = PPCA(latent_dim=2).fit(with_holes(embeddings, mask), mask, iterations=4, start=start)
    for name in ("weights", "means"):
        assert_allclose(np.concatenate(getattr(fast, name)), np.concatenate(getattr(slow, name)), rtol=1e-10, atol=1e-10)
    assert_allclose(fast.noise, slow.noise, rtol=1e-10)
    assert_allclose(fast.log_likelihoods, slow.log_likelihoods, rtol=1e-11)


def test_a_pattern_with_few_items_costs_its_rows_and_gives_the_same():
    # Few items beside the coordinates, fewer than latent dimensions: the E-step goes through the rows.
    dims = (40, 30, 20)
    embeddings, mask = draw(model(dims, 20, 0), 50, 1), random_mask(50, 3, 2)
    held = Statistics.of(observe(embeddings, mask))
    assert all(sums.moment is None for sums in held.patterns.values())
    dense_form = Statistics(held.dims, held.shift)
    for observed, sums in held.patterns.items():
        dense_form.patterns[observed] = dataclasses.replace(sums, moment=sums.dense(), rows=[])
    fits = [PPCA(20).fit_statistics(each, 4, start=model(dims, 20, 3)) for each in (held, dense_form)]
    assert_allclose(np.concatenate(fits[0].weights), np.concatenate(fits[1].weights), rtol=1e-9, atol=1e-10)
    assert_allclose(fits[0].log_likelihoods, fits[1].log_likelihoods, rtol=1e-11)


def test_a_tolerance_stops_where_the_likelihood_is_flat():
    embeddings, mask = draw(model((4, 5, 3), 2, 0), 300, 1), random_mask(300, 3, 2)
    start = model((4, 5, 3), 2, 3)
    whole = PPCA(2).fit(embeddings, mask, iterations=200, start=start)
    stopped = PPCA(2, tolerance=1e-3).fit(embeddings, mask, iterations=200, start=start)
    steps = np.diff(whole.log_likelihoods) / mask.any(axis=1).sum()
    wanted = int(np.flatnonzero(steps < 1e-3)[0]) + 1
    assert len(stopped.log_likelihoods) == wanted + 1 < 200
    assert_allclose(stopped.log_likelihoods, whole.log_likelihoods[: wanted + 1], rtol=1e-12)
    assert PPCA.from_state(stopped.state()).tolerance == 1e-3
    with pytest.raises(CalmrlError, match="tolerance is -1"):
        PPCA(2, tolerance=-1)


def test_both_forms_of_the_statistics_take_part():
    # Wide modalities: rare patterns keep their rows, common ones their moments, in one fit.
    dims, k = (40, 30, 20), 3
    embeddings = draw(model(dims, 4, 0), 200, 1)
    mask = random_mask(200, k, 2)
    statistics = Statistics.of(observe(embeddings, mask))
    forms = {sums.moment is None for sums in statistics.patterns.values()}
    assert forms == {True, False}
    start = model(dims, 4, 3)
    slow = per_item_em(embeddings, mask, start, 3)
    fast = PPCA(4).fit(embeddings, mask, iterations=3, start=start)
    assert_allclose(np.concatenate(fast.weights), np.concatenate(slow.weights), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_the_likelihood_never_falls(shared):
    for seed in range(6):
        dims = (5, 3, 8, 2)
        embeddings = [np.tanh(value) for value in draw(model(dims, 6, seed), 80, seed)]
        mask = random_mask(80, 4, seed)
        steps = np.diff(PPCA(4, shared_noise=shared).fit(embeddings, mask, iterations=80).log_likelihoods)
        assert steps.min() > -1e-7
    if shared:
        assert np.ptp(PPCA(4, shared_noise=True).fit(embeddings, mask, iterations=3).noise) == 0


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("accelerate", [False, True])
def test_with_a_prior_the_posterior_never_falls(shared, accelerate):
    # The start is near the likelihood's maximum, from where a strong prior makes the likelihood fall at once.
    dims, q, ridge = (5, 3, 8), 4, 30.0
    embeddings, mask = [np.tanh(value) for value in draw(model(dims, 6, 0), 80, 0)], random_mask(80, 3, 0)

    def posterior(fitted):
        prior = [stats.norm(0, np.sqrt(s / ridge)).logpdf(w).sum() for w, s in zip(fitted.weights, fitted.noise, strict=True)]
        return fitted.log_likelihoods[-1] + sum(prior)

    options = {"ridge": ridge, "shared_noise": shared, "accelerate": accelerate}
    fits = [PPCA(q, **options).fit(embeddings, mask, iterations=turn) for turn in range(25)]
    assert np.diff([posterior(fitted) for fitted in fits]).min() > -1e-8
    assert fits[-1].log_likelihoods[-1] < fits[0].log_likelihoods[-1] - 10
    # A tolerance is about what EM climbs: it stops near the top, not where the likelihood first falls.
    stopped = PPCA(q, tolerance=1e-4, **options).fit(embeddings, mask, iterations=500)
    top = PPCA(q, **options).fit(embeddings, mask, iterations=500)
    assert 1 < len(stopped.log_likelihoods) - 1 < 500
    assert posterior(top) - posterior(stopped) < 0.1


@pytest.mark.slow
def test_the_prior_of_private_latents_is_on_the_entries_that_may_differ_from_zero():
    dims, ridge = (6, 8), 5.0
    embeddings, mask = draw(model(dims, 4, 0), 60, 1), random_mask(60, 2, 2)
    top = PrivatePPCA(2, private_dim=2, ridge=ridge).fit(embeddings, mask, iterations=1000)

    def posterior(factor):
        moved = PPCA.from_state({**PPCA.state(top), "noise": top.noise * factor})
        reached = moved.log_likelihood(embeddings, mask).sum()
        for j, (w, s) in enumerate(zip(moved.weights, moved.noise, strict=True)):
            reached += stats.norm(0, np.sqrt(s / ridge)).logpdf(w[:, [0, 1, 2 + 2 * j, 3 + 2 * j]]).sum()
        return reached

    for j in range(2):
        here, up, down = (posterior(np.where(np.arange(2) == j, factor, 1)) for factor in (1, 1.005, 0.995))
        assert here > max(up, down)


def test_likelihood_imputation_and_error_are_those_of_the_dense_gaussian():
    dims, q = (4, 6, 3, 1), 3
    embeddings = draw(model(dims, q, 0), 40, 1)
    mask = random_mask(40, 4, 2)
    fitted = PPCA(q).fit(embeddings, mask, iterations=10)
    mean, covariance = dense(fitted)
    likelihood = fitted.log_likelihood(with_holes(embeddings, mask), mask)
    filled = fitted.impute(with_holes(embeddings, mask), mask)
    predicted = fitted.predicted_error(with_holes(embeddings, mask), mask)
    stacked = np.concatenate(embeddings, axis=1)
    for i, row in enumerate(mask):
        o = coordinates(dims, row)
        residual = stacked[i, o] - mean[o]
        c = covariance[np.ix_(o, o)]
        expected = (
            -0.5 * (residual @ np.linalg.solve(c, residual) + np.linalg.slogdet(c)[1] + o.sum() * np.log(2 * np.pi))
            if o.any()
            else 0.0
        )
        assert likelihood[i] == pytest.approx(expected, rel=1e-11)
        gain = covariance[np.ix_(~o, o)] @ np.linalg.inv(c)
        assert_allclose(np.concatenate([f[i] for f in filled])[~o], mean[~o] + gain @ residual, rtol=1e-10, atol=1e-10)
        conditional = covariance[np.ix_(~o, ~o)] - gain @ covariance[np.ix_(o, ~o)]
        traces = np.zeros(4)
        np.add.at(traces, np.repeat(np.arange(4), dims)[~o], np.diag(conditional))
        assert_allclose(predicted[i], traces, rtol=1e-10)
        posterior = fitted.posterior(np.flatnonzero(row).tolist())
        if (~row).any():
            factors = np.concatenate([posterior.covariance_factor(j).numpy() for j in np.flatnonzero(~row)])
            noise = np.repeat(fitted.noise[~row], np.array(dims)[~row])
            assert_allclose(factors @ factors.T + np.diag(noise), conditional, rtol=1e-9, atol=1e-10)
    assert fitted.log_likelihoods[-1] == pytest.approx(likelihood.sum(), rel=1e-10)


@pytest.mark.parametrize(
    "kind", [np.float64, np.float32, np.float16, torch.float64, torch.float32, torch.float16, torch.bfloat16]
)
def test_observed_entries_come_back_bit_for_bit(kind):
    embeddings = draw(model((4, 5), 2, 0), 30, 1)
    mask = random_mask(30, 2, 2)
    fitted = PPCA(2).fit(embeddings, mask, iterations=3)
    torch_kind = isinstance(kind, torch.dtype)
    given_values = [torch.tensor(v).to(kind) if torch_kind else v.astype(kind) for v in with_holes(embeddings, mask)]
    filled = fitted.impute(given_values, torch.tensor(mask) if torch_kind else mask)
    for j, (before, after) in enumerate(zip(given_values, filled, strict=True)):
        assert type(after) is type(before)
        assert after.dtype == before.dtype
        assert bool((after[mask[:, j]] == before[mask[:, j]]).all())
        assert np.isfinite(np.asarray(after.float() if torch_kind else after)).all()
        # Holes of the input stay holes: nothing is written in place.
        assert bool((before != before)[~mask[:, j]].all())


def test_the_fit_recovers_the_covariance_that_made_the_data():
    truth = model((5, 4, 6), 3, 0)
    embeddings = draw(truth, 20000, 1)
    mask = random_mask(20000, 3, 2, 0.7)
    fitted = PPCA(3).fit(with_holes(embeddings, mask), mask, iterations=100)
    mean, covariance = dense(fitted)
    true_mean, true_covariance = dense(truth)
    assert np.linalg.norm(covariance - true_covariance) / np.linalg.norm(true_covariance) < 0.03
    assert_allclose(mean, true_mean, atol=0.08)
    assert_allclose(fitted.noise, truth.noise, rtol=0.03)


def test_a_bridge_is_enough_where_two_modalities_are_never_seen_together():
    truth = model((6, 8, 6), 3, 0)
    embeddings = draw(truth, 8000, 1)
    mask = np.ones((8000, 3), dtype=bool)
    mask[:4000, 2] = False
    mask[4000:, 0] = False
    fitted = PPCA(3).fit(with_holes(embeddings, mask), mask, iterations=100)
    error = np.square(fitted.impute(embeddings, mask)[2][:4000] - embeddings[2][:4000]).sum(axis=1).mean()
    best = truth_error(truth, observed=[0, 1], missing=2)
    assert error < 1.1 * best


@pytest.mark.slow
@pytest.mark.parametrize("k", [16, 17, 32, 62])
def test_many_modalities_are_connected_however_many_there_are(k):
    n = 2 * k
    embeddings = draw(model((2,) * k, 2, 0), n, 1)
    fitted = PPCA(2).fit(embeddings, random_mask(n, k, 2), iterations=5)
    assert np.diff(fitted.log_likelihoods).min() > -1e-7
    # A chain: each item shows two neighbours, and nothing else connects the first modality with the last.
    links = np.arange(n) % (k - 1)
    chain = np.zeros((n, k), dtype=bool)
    chain[np.arange(n), links] = chain[np.arange(n), links + 1] = True
    PPCA(2).fit(embeddings, chain, iterations=1)
    chain[links == k // 2] = False
    with pytest.raises(CalmrlError, match="not even through a chain"):
        PPCA(2).fit(embeddings, chain, iterations=1)


def truth_error(truth, observed, missing):
    oracle = PPCA.from_state(
        {
            **{f"weights.{j}": w for j, w in enumerate(truth.weights)},
            **{f"means.{j}": mu for j, mu in enumerate(truth.means)},
            "noise": truth.noise, "log_likelihoods": np.zeros(0), "options": np.array([3.0, 0, 0, 0]),
        }
    )  # fmt: skip
    return oracle.posterior(observed).expected_error(missing)


def test_the_order_of_rows_does_not_matter():
    embeddings = draw(model((5, 7, 4), 3, 0), 300, 1)
    mask = random_mask(300, 3, 2)
    order = np.random.default_rng(3).permutation(300)
    one = PPCA(3).fit(embeddings, mask, iterations=20)
    two = PPCA(3).fit([v[order] for v in embeddings], mask[order], iterations=20)
    assert_allclose(np.concatenate(one.weights), np.concatenate(two.weights), rtol=1e-8, atol=1e-9)
    assert_allclose(one.log_likelihoods, two.log_likelihoods, rtol=1e-12)


def test_an_iteration_looks_at_patterns_only():
    # Work is counted, not timed: the numbers held are the same for 100 times the items.
    embeddings = draw(model((6, 5, 4), 3, 0), 20000, 1)
    mask = random_mask(20000, 3, 2)
    sizes = [Statistics.of(observe([v[:n] for v in embeddings], mask[:n])).bytes for n in (200, 20000)]
    assert sizes[0] == sizes[1]


def test_going_on_from_a_fit_is_the_same_as_not_stopping():
    embeddings = draw(model((5, 4), 2, 0), 100, 1)
    mask = random_mask(100, 2, 2)
    whole = PPCA(2).fit(embeddings, mask, iterations=9)
    part = PPCA(2).fit(embeddings, mask, iterations=4)
    part.fit(embeddings, mask, iterations=5, start=part)
    assert_allclose(np.concatenate(whole.weights), np.concatenate(part.weights), rtol=1e-10)
    assert_allclose(whole.log_likelihoods[4:], part.log_likelihoods, rtol=1e-12)
    as_mapping = {"weights": part.weights, "means": part.means, "noise": part.noise}
    again = PPCA(2).fit(embeddings, mask, iterations=0, start=as_mapping)
    assert_allclose(np.concatenate(again.means), np.concatenate(part.means), rtol=1e-12)
    assert len(again.log_likelihoods) == 1


def test_a_saved_fit_comes_back():
    embeddings = draw(model((5, 4), 2, 0), 50, 1)
    mask = random_mask(50, 2, 2)
    fitted = PPCA(2, ridge=0.5).fit(embeddings, mask, iterations=4)
    loaded = PPCA.from_state(fitted.state())
    assert loaded.options() == fitted.options()
    for a, b in zip(loaded.impute(embeddings, mask), fitted.impute(embeddings, mask), strict=True):
        assert (a == b).all()
    with pytest.raises(CalmrlError, match="no saved state of imputer 'ppca'"):
        PPCA.from_state({"means.0": np.zeros(3)})


def test_torch_and_float32_agree_with_numpy():
    embeddings = draw(model((6, 7, 5), 3, 0), 400, 1)
    mask = random_mask(400, 3, 2)
    exact = PPCA(3).fit(embeddings, mask, iterations=10)
    same = PPCA(3).fit([torch.tensor(v) for v in embeddings], torch.tensor(mask), iterations=10)
    single = PPCA(3).fit([torch.tensor(v, dtype=torch.float32) for v in embeddings], torch.tensor(mask), iterations=10)
    assert (np.concatenate(exact.weights) == np.concatenate(same.weights)).all()
    assert_allclose(np.abs(np.concatenate(single.weights)), np.abs(np.concatenate(exact.weights)), atol=1e-4)
    assert isinstance(same.weights[0], np.ndarray)
    assert single.weights[0].dtype == np.float64


class TestErrors:
    def fit(self, embeddings, mask, **options):
        imputer = PPCA(options.pop("latent_dim", 2))
        imputer.modalities = ("vision", "audio", "caption")[: len(embeddings)]
        return imputer.fit(embeddings, mask, **options)

    def example(self):
        return draw(model((4, 3, 5), 2, 0), 30, 1), random_mask(30, 3, 2)

    @pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
    def test_not_finite(self, value, word):
        embeddings, mask = self.example()
        row = int(np.flatnonzero(mask[:, 1])[4])
        embeddings[1][row, 2] = value
        with pytest.raises(CalmrlError, match=f"modality 'audio' hold {word} values at observed row {row} "):
            self.fit(embeddings, mask)
        fitted = self.fit(*self.example())
        with pytest.raises(CalmrlError, match="modality 'audio'"):
            fitted.impute(embeddings, mask)

    def test_never_observed(self):
        embeddings, mask = self.example()
        mask[:, 2] = False
        with pytest.raises(CalmrlError, match="modality 'caption' is never observed"):
            self.fit(embeddings, mask)

    def test_never_connected(self):
        embeddings, mask = self.example()
        mask[:15] = [True, True, False]
        mask[15:] = [False, False, True]
        with pytest.raises(CalmrlError, match="modality 'caption' is never observed together with any of 'vision', 'audio'"):
            self.fit(embeddings, mask)

    @pytest.mark.parametrize("latent_dim", [0, -1, 2.5, True, "eight"])
    def test_a_latent_dimension_that_is_no_count(self, latent_dim):
        with pytest.raises(CalmrlError, match="latent_dim is .* expected a whole number"):
            PPCA(latent_dim)

    def test_a_latent_dimension_that_is_too_large(self):
        with pytest.raises(CalmrlError, match="latent_dim is 12, but the modalities have only 12 dimensions"):
            self.fit(*self.example(), latent_dim=12)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda e, m: (e, m.astype(int)), "the mask is int64, expected bool"),
            (lambda e, m: (e, m[:, :2]), "the mask has shape"),
            (lambda e, m: (e, m[:20]), "have shape .* expected .20"),
            (lambda e, m: ([e[0], e[1], e[2][:, 0]], m), "modality 'caption' have shape"),
            (lambda e, m: ([e[0], e[1], (e[2] * 10).astype(int)], m), "modality 'caption' are int64"),
            (lambda e, m: ([], m), "no embeddings"),
        ],
    )
    def test_shapes_and_dtypes(self, change, said):
        with pytest.raises(CalmrlError, match=said):
            self.fit(*change(*self.example()))

    def test_a_start_that_does_not_fit(self):
        embeddings, mask = self.example()
        with pytest.raises(CalmrlError, match="expected .4, 2. and .4."):
            self.fit(embeddings, mask, start=model((5, 3, 5), 2, 0))
        with pytest.raises(CalmrlError, match="start has no 'weights'"):
            self.fit(embeddings, mask, start=PPCA(2))
        bad = model((4, 3, 5), 2, 0)
        bad.noise[1] = 0
        with pytest.raises(CalmrlError, match="noise variances"):
            self.fit(embeddings, mask, start=bad)

    def test_use_before_fit_and_other_dimensions(self):
        embeddings, mask = self.example()
        with pytest.raises(CalmrlError, match="has not been fitted"):
            PPCA(2).impute(embeddings, mask)
        fitted = self.fit(embeddings, mask)
        with pytest.raises(CalmrlError, match="have dimension 5, but the imputer was fitted on 4"):
            fitted.impute([embeddings[2], embeddings[1], embeddings[2]], mask)
        with pytest.raises(CalmrlError, match="2 arrays of embeddings"):
            fitted.log_likelihood(embeddings[:2], mask[:, :2])
