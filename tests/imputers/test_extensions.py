"""Options and relatives of PPCA: acceleration, samples, reliability, private latents, Student tails, mixtures."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats

from calmrl_lab.completion.reliability import reliability
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers.mean import Mean
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.imputers.ppca_mixture import MixturePPCA
from calmrl_lab.imputers.ppca_private import PrivatePPCA
from calmrl_lab.imputers.ppca_student import StudentPPCA


def related(n, dims=(8, 6, 7), q=3, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, q))
    return [latent @ np.random.default_rng(50 + d).normal(size=(q, d)) + noise * rng.normal(size=(n, d)) for d in dims]


def masks(n, k=3, rate=0.65, seed=1):
    rng = np.random.default_rng(seed)
    mask = rng.random((n, k)) < rate
    mask[np.arange(n), rng.integers(k, size=n)] = True
    return mask


def error(imputer, embeddings, mask):
    filled = imputer.impute(embeddings, mask)
    parts = [np.square(f - e)[~mask[:, j]].sum(axis=1) for j, (f, e) in enumerate(zip(filled, embeddings, strict=True))]
    return np.concatenate(parts).mean()


def dense(imputer):
    w = np.concatenate(imputer.weights)
    noise = np.concatenate([np.full(len(mu), s) for mu, s in zip(imputer.means, imputer.noise, strict=True)])
    return np.concatenate(imputer.means), w @ w.T + np.diag(noise)


class TestAcceleration:
    def test_it_rises_too_and_gets_further(self):
        embeddings = [np.tanh(v) for v in related(150, q=6)]
        mask = masks(150)
        start = PPCA(4).fit(embeddings, mask, iterations=1)
        plain = PPCA(4).fit(embeddings, mask, iterations=40, start=start)
        fast = PPCA(4, accelerate=True).fit(embeddings, mask, iterations=40, start=start)
        assert len(fast.log_likelihoods) == 41
        assert np.diff(fast.log_likelihoods).min() > -1e-7
        assert fast.log_likelihoods[-1] >= plain.log_likelihoods[-1]
        gap = plain.log_likelihoods[-1] - plain.log_likelihoods
        near = fast.log_likelihoods >= plain.log_likelihoods[-1]
        assert np.flatnonzero(near)[0] < 25, gap


class TestSamples:
    def test_mean_and_spread_are_those_of_the_conditional(self):
        embeddings, mask = related(12), masks(12)
        fitted = PPCA(3).fit(related(400), masks(400))
        drawn = fitted.sample(embeddings, mask, 4000, torch.Generator().manual_seed(0))
        filled, predicted = fitted.impute(embeddings, mask), fitted.predicted_error(embeddings, mask)
        for j in range(3):
            assert drawn[j].shape == (4000, 12, embeddings[j].shape[1])
            assert (drawn[j][:, mask[:, j]] == embeddings[j][mask[:, j]]).all()
            gaps = ~mask[:, j]
            assert_allclose(drawn[j][:, gaps].mean(axis=0), filled[j][gaps], atol=0.1)
            assert_allclose(np.square(drawn[j] - filled[j]).sum(axis=2).mean(axis=0)[gaps], predicted[gaps, j], rtol=0.1)

    def test_missing_modalities_are_drawn_together(self):
        fitted = PPCA(3).fit(related(400), masks(400))
        mask = np.array([[True, False, False]])
        drawn = fitted.sample([v[:1] for v in related(5)], mask, 20000, torch.Generator().manual_seed(0))
        joint = np.concatenate([drawn[1][:, 0], drawn[2][:, 0]], axis=1)
        _, covariance = dense(fitted)
        o, m = slice(0, 8), slice(8, 21)
        conditional = covariance[m, m] - covariance[m, o] @ np.linalg.solve(covariance[o, o], covariance[o, m])
        assert_allclose(np.cov(joint.T), conditional, atol=0.05 * np.abs(conditional).max())


class TestPrivate:
    def test_zeros_stay_and_the_likelihood_never_falls(self):
        embeddings, mask = related(200), masks(200)
        fitted = PrivatePPCA(2, private_dim=2).fit(embeddings, mask, iterations=30)
        assert np.diff(fitted.log_likelihoods).min() > -1e-7
        assert fitted.weights[0].shape == (8, 8)
        for j, w in enumerate(fitted.weights):
            others = [2 + 2 * m + c for m in range(3) if m != j for c in range(2)]
            assert (w[:, others] == 0).all()
            assert np.abs(np.delete(w, others, axis=1)).min(axis=0).max() > 0

    def test_it_separates_what_is_private(self):
        rng = np.random.default_rng(0)
        shared, own = rng.normal(size=(1500, 2)), [rng.normal(size=(1500, 3)) for _ in range(3)]
        embeddings = [
            shared @ rng.normal(size=(2, d)) + 2 * private @ rng.normal(size=(3, d)) + 0.3 * rng.normal(size=(1500, d))
            for d, private in zip((8, 6, 7), own, strict=True)
        ]
        mask = masks(1500)
        private = PrivatePPCA(2, private_dim=3).fit(embeddings, mask, iterations=300)
        plain = PPCA(2).fit(embeddings, mask, iterations=300)
        assert error(private, embeddings, mask) < 0.97 * error(plain, embeddings, mask)
        assert error(private, embeddings, mask) < 0.97 * error(Mean().fit(embeddings, mask), embeddings, mask)

    def test_it_goes_on_and_comes_back(self):
        embeddings, mask = related(100), masks(100)
        part = PrivatePPCA(2, private_dim=2).fit(embeddings, mask, iterations=3)
        whole = PrivatePPCA(2, private_dim=2).fit(embeddings, mask, iterations=5)
        assert_allclose(part.fit(embeddings, mask, iterations=2, start=part).noise, whole.noise, rtol=1e-9)
        assert PrivatePPCA.from_state(part.state()).private_dim == 2
        with pytest.raises(CalmrlError, match="cannot choose latent_dim"):
            PrivatePPCA("auto")


class TestStudent:
    def test_the_likelihood_is_that_of_the_multivariate_t(self):
        embeddings, mask = related(60), masks(60)
        fitted = StudentPPCA(3).fit(embeddings, mask, iterations=10)
        fitted.degrees = 5.0
        mean, covariance = dense(fitted)
        stacked = np.concatenate(embeddings, axis=1)
        found = fitted.log_likelihood(embeddings, mask)
        for i in range(10):
            o = np.repeat(mask[i], (8, 6, 7))
            expected = stats.multivariate_t(mean[o], covariance[np.ix_(o, o)], df=5.0).logpdf(stacked[i, o])
            assert found[i] == pytest.approx(expected, rel=1e-9)

    def test_outliers_do_less_harm(self):
        embeddings, mask = related(300), masks(300)
        spoiled = [v.copy() for v in embeddings]
        rng = np.random.default_rng(5)
        for v in spoiled:
            v[:15] += 30 * rng.normal(size=v[:15].shape)
        student, plain = (kind(3).fit(spoiled, mask) for kind in (StudentPPCA, PPCA))
        assert student.degrees < 10
        clean = slice(15, None)
        assert error(student, [v[clean] for v in embeddings], mask[clean]) < 0.8 * error(
            plain, [v[clean] for v in embeddings], mask[clean]
        )

    def test_unusual_items_are_predicted_worse(self):
        embeddings, mask = related(200), masks(200)
        heavy = [
            v * s
            for v, s in zip(embeddings, [np.sqrt(4 / np.random.default_rng(0).chisquare(4, size=(200, 1)))] * 3, strict=True)
        ]
        fitted = StudentPPCA(3).fit(heavy, mask)
        far = [v * 5 for v in heavy]
        gaps = ~mask
        assert (fitted.predicted_error(far, mask)[gaps] > fitted.predicted_error(heavy, mask)[gaps]).all()
        assert np.diff(fitted.log_likelihoods).min() > -1e-6 * abs(fitted.log_likelihoods[0])


class TestMixture:
    def test_kinds_with_opposite_relations(self):
        # In one kind the second modality repeats the first, in the other it is its negative: one Gaussian sees no relation at all.
        rng = np.random.default_rng(0)
        kind = rng.integers(2, size=(600, 1))
        latent = rng.normal(size=(600, 6))
        embeddings = [latent + 8 * kind, latent * (1 - 2 * kind) + 0.2 * rng.normal(size=(600, 6))]
        mask = masks(600, 2)
        mixture = MixturePPCA(components=2, latent_dim=6, ridge=1.0, pooling=0.02).fit(embeddings, mask)
        plain = PPCA(6).fit(embeddings, mask)
        gaps = ~mask[:, 1]
        real = [np.square(m.impute(embeddings, mask)[1] - embeddings[1])[gaps].sum(axis=1).mean() for m in (mixture, plain)]
        assert real[0] < 0.3 * real[1]
        assert 0.5 < real[0] / mixture.predicted_error(embeddings, mask)[gaps, 1].mean() < 2

    def test_one_component_is_plain_ppca(self):
        embeddings, mask = related(150), masks(150)
        mixture = MixturePPCA(components=1, latent_dim=3, ridge=0.0, passes=3).fit(embeddings, mask)
        # Twenty iterations on everything, then three passes of five.
        plain = PPCA(3).fit(embeddings, mask, iterations=35)
        assert_allclose(mixture.log_likelihood(embeddings, mask), plain.log_likelihood(embeddings, mask), rtol=1e-3)


class TestReliability:
    def test_by_hand(self):
        found = reliability(np.array([1.0, 1.0, 3.0, 3.0]), np.array([1.0, 2.0, 3.0, 6.0]), bins=2)
        assert found.count.tolist() == [2, 2]
        assert found.predicted.tolist() == [1, 3]
        assert found.real.tolist() == [1.5, 4.5]
        assert found.ratio == pytest.approx(1.5)
        assert found.miscalibration == pytest.approx(1 / 3)
        assert_allclose(found.standard_error, [0.5, 1.5])

    def test_equal_predictions_share_a_bin_and_unknown_ones_are_left_out(self):
        found = reliability(np.array([2.0] * 50 + [np.nan]), np.arange(51.0))
        assert found.count.tolist() == [50]
        with pytest.raises(CalmrlError, match="no entry"):
            reliability(np.array([np.nan]), np.array([1.0]))
        with pytest.raises(CalmrlError, match="do not fit"):
            reliability(np.ones(3), np.ones(4))
