"""The likelihood ratio is the density ratio of the dense Gaussian; the embeddings are what their formulas say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from calmrl_lab.errors import CalmrlError
from calmrl_lab.model.feature_map import identities
from calmrl_lab.model.similarity import LikelihoodRatio
from calmrl_lab.ppca.latent_maps import EMBEDDINGS, LatentMaps

MODALITIES = ("a", "b", "c")


def model(seed, dims, q):
    """PPCA parameters and the maps they give: features as they are."""
    draw = np.random.default_rng(seed)
    weights = [draw.normal(size=(d, q)) for d in dims]
    means = [draw.normal(size=d) for d in dims]
    noise = draw.uniform(0.1, 2, len(dims))
    maps = LatentMaps(
        MODALITIES[: len(dims)],
        tuple(torch.from_numpy(m) for m in means),
        tuple(torch.from_numpy(w / s) for w, s in zip(weights, noise, strict=True)),
        torch.stack([torch.from_numpy(w.T @ w / s) for w, s in zip(weights, noise, strict=True)]),
    )
    return weights, means, noise, maps


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=2, max_size=3), st.integers(1, 4))
def test_the_likelihood_ratio_is_the_log_density_ratio_of_the_joint_gaussian(seed, dims, q):
    weights, means, noise, maps = model(seed, dims, q)
    draw = np.random.default_rng(seed + 1)
    x, y = draw.normal(size=(3, dims[0])), draw.normal(size=(4, dims[1]))
    stacked = np.concatenate(weights[:2])
    joint = stacked @ stacked.T + np.diag(np.repeat(noise[:2], dims[:2]))
    first, second = slice(0, dims[0]), slice(dims[0], None)
    mean = np.concatenate(means[:2])
    expected = np.empty((3, 4))
    for i, j in np.ndindex(3, 4):
        both = multivariate_normal(mean, joint).logpdf(np.concatenate([x[i], y[j]]))
        alone = multivariate_normal(means[0], joint[first, first]).logpdf(x[i])
        alone += multivariate_normal(means[1], joint[second, second]).logpdf(y[j])
        expected[i, j] = both - alone
    h, g = maps.information_vector(0, torch.from_numpy(x)), maps.information_vector(1, torch.from_numpy(y))
    found = maps.log_density_ratio(0, [1], h, g).numpy()
    assert found == pytest.approx(expected, rel=1e-8, abs=1e-8)
    # Symmetric, as a ratio of densities must be; and vectors of pairs differ by a term per query.
    back = maps.log_density_ratio(1, [0], g, h).numpy()
    assert np.allclose(back.T, found, rtol=1e-8, atol=1e-8)
    left, right = LikelihoodRatio(maps, identities(dims)).pair_vectors("a", "b", h, g)
    rest = found - (left @ right.T).numpy()
    assert rest == pytest.approx(np.broadcast_to(rest[:, :1], rest.shape), rel=1e-8, abs=1e-8)


def test_the_mean_embedding_is_the_posterior_mean():
    weights, means, noise, maps = model(0, (5, 4), 3)
    x = np.random.default_rng(1).normal(size=(6, 5))
    covariance = weights[0] @ weights[0].T + noise[0] * np.eye(5)
    expected = (x - means[0]) @ np.linalg.solve(covariance, weights[0])
    found = (torch.from_numpy(x) - maps.centres[0]) @ maps.embedding_weights("mean")[0]
    assert found.numpy() == pytest.approx(expected)


@pytest.mark.parametrize("scale", [0.25, 1.0, 8.0])
def test_a_model_with_scaled_noise_is_the_model_with_more_noise(scale):
    weights, means, noise, maps = model(2, (5, 4), 3)
    x, y = np.random.default_rng(1).normal(size=(2, 6, 5))
    y = y[:, :4]
    scaled = maps.noise_scaled(scale)
    covariance = weights[0] @ weights[0].T + scale * noise[0] * np.eye(5)
    expected = (x - means[0]) @ np.linalg.solve(covariance, weights[0])
    found = (torch.from_numpy(x) - scaled.centres[0]) @ scaled.embedding_weights("mean")[0]
    assert found.numpy() == pytest.approx(expected)
    # What only depends on the information vectors can be had from them.
    small = maps.of_information_vectors().noise_scaled(scale)
    seen = [maps.information_vector(index, torch.from_numpy(rows)) for index, rows in enumerate((x, y))]
    slow = [scaled.information_vector(index, torch.from_numpy(rows)) for index, rows in enumerate((x, y))]
    fast = [small.information_vector(index, rows) for index, rows in enumerate(seen)]
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(slow, fast, strict=True))
    one, other = (model.log_density_ratio(0, [1], *slow) for model in (scaled, small))
    assert torch.allclose(one, other, atol=1e-9)


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embeddings_do_not_depend_on_the_basis_of_the_latent_space(kind):
    *_, maps = model(3, (5, 4, 3), 3)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    turned = LatentMaps(maps.modalities, maps.centres, tuple(w @ turn for w in maps.maps), turn.T @ maps.precisions @ turn)
    for before, after in zip(maps.embedding_weights(kind), turned.embedding_weights(kind), strict=True):
        assert torch.allclose(before @ before.T, after @ after.T, atol=1e-9)


def test_an_unknown_embedding_is_refused():
    with pytest.raises(CalmrlError, match="unknown embedding 'median'"):
        model(0, (3, 3), 2)[3].embedding_weights("median")


def test_the_state_brings_everything_back():
    *_, maps = model(4, (3, 2), 2)
    back = LatentMaps.from_state(maps.state(), maps.modalities)
    assert all(torch.equal(a, b) for a, b in zip((*maps.centres, *maps.maps), (*back.centres, *back.maps), strict=True))
    assert torch.equal(maps.precisions, back.precisions)


def test_covariances_are_inverses_whatever_the_number_of_threads():
    # MKL's LU of batches fails from q = 192 on where it has several threads.
    _, _, _, maps = model(0, (200, 210, 220), 192)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        weights = maps.embedding_weights("mean")
        covariance = maps.covariance(0, 1)
    finally:
        torch.set_num_threads(before)
    eye = np.eye(192)
    for weight, scaled, precision in zip(weights, maps.maps, maps.precisions, strict=True):
        np.testing.assert_allclose(weight.numpy(), scaled.numpy() @ np.linalg.inv(eye + precision.numpy()), atol=1e-8)
    np.testing.assert_allclose(covariance.numpy(), np.linalg.inv(eye + maps.precisions[:2].sum(dim=0).numpy()), atol=1e-8)
