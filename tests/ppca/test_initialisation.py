"""Where EM starts: closed forms where there are any, blocks from the items that show them, and the likelier of two starts."""

import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.decomposition import PCA

from calmrl_lab.data.patterns import observe
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.imputers.ppca_auto import AutoPPCA
from calmrl_lab.imputers.ppca_private import PrivatePPCA
from calmrl_lab.ppca.em import Totals, expect
from calmrl_lab.ppca.initialisation import _damped, block_ppca, pairwise_covariance, pairwise_start, top_eigenvectors
from calmrl_lab.ppca.statistics import Statistics

DIMS = (7, 4, 9)


def example(n, seed=0, dims=DIMS, q=3, noise=0.6):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, q))
    return [2.0 + latent @ np.random.default_rng(d).normal(size=(q, d)) + noise * rng.normal(size=(n, d)) for d in dims]


def gaps(n, k=3, seed=1):
    mask = np.random.default_rng(seed).random((n, k)) < 0.7
    mask[: n // 4] = True
    return mask


def implied(fitted):
    """The covariance of all coordinates under a fit."""
    w = np.concatenate(fitted.weights)
    return w @ w.T + np.diag(np.repeat(fitted.noise, [len(mu) for mu in fitted.means]))


def statistics_of(embeddings, mask):
    held = Statistics.of(observe(embeddings, mask))
    return held, Totals.of(held)


@pytest.mark.parametrize("initialisation", ["pairwise", "complete"])
def test_with_nothing_missing_and_one_noise_the_start_is_the_maximum(initialisation):
    n = 300
    embeddings, mask = example(n), np.ones((n, 3), dtype=bool)
    options = {"shared_noise": True, "initialisation": initialisation}
    start = PPCA(3, **options).fit(embeddings, mask, iterations=0)
    # scikit-learn's PPCA (Tipping and Bishop's closed form) divides by n - 1.
    closed = PCA(3).fit(np.concatenate(embeddings, axis=1))
    assert_allclose(start.noise, closed.noise_variance_ * (n - 1) / n, rtol=1e-10)
    assert_allclose(implied(start), closed.get_covariance() * (n - 1) / n, atol=1e-10)
    assert_allclose(np.concatenate(start.means), closed.mean_, rtol=1e-12)
    onward = PPCA(3, **options).fit(embeddings, mask, iterations=20)
    assert onward.log_likelihoods[-1] - start.log_likelihoods[-1] < 1e-7


@pytest.mark.slow
def test_a_start_from_complete_items_looks_at_no_others():
    embeddings, mask = example(200), gaps(200)
    start = PPCA(3, initialisation="complete").fit(embeddings, mask, iterations=0)
    complete = mask.all(axis=1)
    alone = PPCA(3).fit([v[complete] for v in embeddings], mask[complete], iterations=0)
    assert_allclose(implied(start), implied(alone), rtol=1e-6, atol=1e-8)
    assert_allclose(np.concatenate(start.means), np.concatenate(alone.means), rtol=1e-10)
    # Both starts lead to the same place.
    ends = [PPCA(3, initialisation=kind).fit(embeddings, mask, iterations=300) for kind in ("complete", "pairwise")]
    assert ends[0].log_likelihoods[-1] == pytest.approx(ends[1].log_likelihoods[-1], abs=1e-4)
    assert PPCA.from_state(start.state()).options() == start.options()


def test_requests_that_make_no_sense():
    embeddings, mask = example(60), gaps(60)
    mask[:, 2] &= ~mask[:, 0]
    with pytest.raises(CalmrlError, match="needs at least 2 of them, and there are 0"):
        PPCA(2, initialisation="complete").fit(embeddings, mask)
    with pytest.raises(CalmrlError, match="initialisation is 'random', expected one of: pairwise, complete"):
        PPCA(2, initialisation="random")
    for kind in (AutoPPCA, PrivatePPCA):
        with pytest.raises(CalmrlError, match="pairwise moments only"):
            kind(initialisation="complete")


def test_pairwise_blocks_are_those_of_the_items_that_show_both():
    # Wide beside the items of rare patterns: some are held as rows, some as moments, and a stream leaves both in one.
    dims = (30, 20, 10)
    embeddings, mask = example(200, dims=dims), gaps(200)
    held = Statistics(dims, [torch.full((d,), 2.0) for d in dims])
    for rows in np.array_split(np.arange(200), [120, 123, 160]):
        held.add(observe([v[rows] for v in embeddings], mask[rows]))
    forms = {(sums.moment is not None, bool(sums.rows)) for sums in held.patterns.values()}
    assert forms >= {(True, True), (False, True)}
    covariance, unknown = pairwise_covariance(held, Totals.of(held))
    assert unknown == []
    means = [v[mask[:, j]].mean(axis=0) for j, v in enumerate(embeddings)]
    ends = np.cumsum([0, *dims])
    for i, j in itertools.product(range(3), repeat=2):
        both = mask[:, i] & mask[:, j]
        expected = (embeddings[i][both] - means[i]).T @ (embeddings[j][both] - means[j]) / both.sum()
        assert_allclose(covariance[ends[i] : ends[i + 1], ends[j] : ends[j + 1]], expected, atol=1e-10)


def test_blocks_that_no_item_shows_are_told_and_bridged():
    embeddings, mask = example(4000), np.ones((4000, 3), dtype=bool)
    mask[:2000, 2], mask[2000:, 0] = False, False
    held, totals = statistics_of(embeddings, mask)
    covariance, unknown = pairwise_covariance(held, totals)
    assert unknown == [(slice(0, 7), slice(11, 20))]
    assert bool((covariance[:7, 11:] == 0).all())
    truth = np.cov(np.concatenate([embeddings[0], embeddings[2]], axis=1).T)[:7, 7:]

    def miss(iterations):
        w = np.concatenate(PPCA(3).fit(embeddings, mask, iterations=iterations).weights)
        return np.linalg.norm(w[:7] @ w[11:].T - truth) / np.linalg.norm(truth)

    # The start is halfway there, and EM goes on from it.
    assert miss(0) < 0.7
    assert miss(5) < 0.2


def test_contradicting_moments_are_damped_where_that_is_likelier():
    # Fewer items than dimensions, each pair of modalities from other items: the covariance is far from positive definite.
    embeddings, mask = example(45, dims=(40, 30, 20), noise=0.3), np.ones((45, 3), dtype=bool)
    mask[np.arange(45), np.arange(45) % 3] = False
    held, totals = statistics_of(embeddings, mask)
    covariance, unknown = pairwise_covariance(held, totals)
    assert float(torch.linalg.eigvalsh(covariance)[0]) < -0.1 * float(covariance.diagonal().mean())
    assert float(torch.linalg.eigvalsh(_damped(covariance, held))[0]) > -1e-9
    plain, sound = block_ppca(covariance.clone(), unknown, held, totals, 10, "per-modality")
    assert not sound
    damped, _ = block_ppca(_damped(covariance, held), [], held, totals, 10, "per-modality")
    reached = [expect(held, totals, each).log_likelihood for each in (plain, damped, pairwise_start(held, totals, 10))]
    assert reached[2] == max(reached[:2])


def test_iterated_eigenvectors_are_those_of_the_full_decomposition():
    generator = torch.Generator().manual_seed(0)
    size, count = 500, 6
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    spectrum = torch.cat([torch.tensor([40.0, 35, 30, 25, 22, 20], dtype=torch.float64), torch.linspace(1, 0.1, size - count)])
    scale = 0.5 + torch.rand(size, generator=generator, dtype=torch.float64)
    matrix = (basis * spectrum) @ basis.T / torch.outer(scale, scale)
    values, vectors = top_eigenvectors(matrix, matrix.float(), scale, count)
    # Products are in float32; that is all that a start needs.
    assert_allclose(values[:count], spectrum[:count], rtol=1e-5)
    assert_allclose((vectors[:, :count] * basis[:, :count]).sum(dim=0).abs(), 1, atol=1e-5)
    # Going on from the vectors of a similar problem takes fewer products and loses nothing.
    again, _ = top_eigenvectors(matrix * 1.1, (matrix * 1.1).float(), scale, count, vectors)
    assert_allclose(again[:count], 1.1 * spectrum[:count], rtol=1e-5)
