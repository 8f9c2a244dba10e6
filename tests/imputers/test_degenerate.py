"""Data that is hardly data: every imputer gives a right answer or one clear sentence."""

from functools import cache

import numpy as np
import pytest
from numpy.testing import assert_allclose

from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers.ppca import PPCA

SMALL_MODELS = {
    "ppca-private": {"latent_dim": 2, "private_dim": 1},
    "ppca-student": {"latent_dim": 2},
    "ppca-mixture": {"latent_dim": 2, "components": 2, "passes": 3},
    "ppca-auto": {"folds": 2},
}
SMALL_NETWORKS = {name: {"epochs": 5, "hidden": 16} for name in ("autoencoder", "mvae", "mopoe", "context", "attention")}
OPTIONS = {
    **SMALL_MODELS,
    **SMALL_NETWORKS,
    "ppca": {"latent_dim": 2},
    "ppca-gradient": {"latent_dim": 2, "steps": 20},
    "soft-impute": {"rounds": 5},
}
# What breaks on hardly any data breaks in the first iterations.
FITTED = {name: {"iterations": 10} for name in ("ppca", "ppca-auto", "ppca-private", "ppca-student")}
FILLING = [name for name in sorted(imputers.names()) if imputers.get(name).fills]


def related(n=60, dims=(5, 4, 6), seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, 2))
    return [latent @ rng.normal(size=(2, d)) + 0.3 * rng.normal(size=(n, d)) for d in dims]


def some_mask(n=60, k=3, seed=1):
    mask = np.random.default_rng(seed).random((n, k)) < 0.6
    mask[0] = True
    return mask


def filled(name, embeddings, mask):
    imputer = imputers.get(name)(**OPTIONS.get(name, {})).fit(embeddings, mask, **FITTED.get(name, {}))
    result = imputer.impute(embeddings, mask)
    for j, (before, after) in enumerate(zip(embeddings, result, strict=True)):
        assert np.isfinite(after).all(), f"{name} fills modality {j} with values that are not finite"
        assert (after[mask[:, j]] == before[mask[:, j]]).all()
    if hasattr(imputer, "predicted_error"):
        predicted = imputer.predicted_error(embeddings, mask)
        assert np.isfinite(predicted).all()
        assert (predicted >= 0).all()
    return result


@cache
def filled_plainly(name):
    return filled(name, related(), some_mask())


@pytest.fixture(params=FILLING)
def name(request):
    return request.param


def test_one_item(name):
    filled(name, related(1), np.ones((1, 3), dtype=bool))


def test_items_that_are_all_the_same(name):
    embeddings, mask = [np.repeat(v[:1], 60, axis=0) for v in related()], some_mask()
    for after, truth in zip(filled(name, embeddings, mask), embeddings, strict=True):
        if name != "zero":
            assert_allclose(after, truth, rtol=1e-5)


def test_a_modality_that_never_varies_says_nothing_about_the_others(name):
    embeddings, mask = related(), some_mask()
    # 0.1 is no sum of powers of two: the mean of 60 of them is another number by rounding.
    embeddings[2] = np.broadcast_to(0.1 * np.arange(1, 7), (60, 6)).copy()
    imputer = imputers.get(name)(**OPTIONS.get(name, {})).fit(embeddings, mask, **FITTED.get(name, {}))
    shown, usual = np.tile([[False, True, True]], (60, 1)), [embeddings[0], embeddings[1], embeddings[2]]
    unusual = [embeddings[0], embeddings[1], embeddings[2] + np.random.default_rng(2).normal(size=(60, 6))]
    filled_usually, filled_unusually = (imputer.impute(items, shown)[0] for items in (usual, unusual))
    assert np.abs(filled_unusually).max() < 10 * np.abs(embeddings[0]).max()
    # These choose among groups, components or rows by how near an item is in all modalities.
    if name not in ("group-mean", "ppca-mixture", "random"):
        assert_allclose(filled_unusually, filled_usually, atol=1e-6)


def test_zeros_everywhere(name):
    for after in filled(name, [np.zeros_like(v) for v in related()], some_mask()):
        assert_allclose(after, 0, atol=1e-9)


def test_one_modality_alone(name):
    embeddings, mask = related()[:1], some_mask()[:, :1]
    result = filled(name, embeddings, mask)
    # Nothing is known of an item that shows nothing; robust and clustered models have centres of their own, and gradient steps only come near.
    if name not in ("zero", "random", "ppca-student", "ppca-mixture", "ppca-gradient"):
        assert_allclose(result[0][~mask[:, 0]], np.broadcast_to(embeddings[0][mask[:, 0]].mean(axis=0), ((~mask).sum(), 5)))


def test_one_item_that_is_far_from_all_others(name):
    embeddings, mask = related(), some_mask()
    embeddings[0][0] *= 1e6
    filled(name, embeddings, mask)


def test_modalities_that_are_never_seen_together(name):
    mask = np.zeros((60, 3), dtype=bool)
    mask[np.arange(60), np.arange(60) % 3] = True
    if name.startswith("ppca") or name in SMALL_NETWORKS:
        # A network that no item has taught would fill in whatever its initial weights say.
        with pytest.raises(CalmrlError, match=f"never observed together with any of 0, .* so imputer '{name}' cannot"):
            filled(name, related(), mask)
    else:
        filled(name, related(), mask)


def test_one_complete_row_among_pairs(name):
    mask = np.ones((60, 3), dtype=bool)
    mask[np.arange(1, 60), np.arange(1, 60) % 3] = False
    filled(name, related(), mask)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_modality_is_filled_with_its_constant(name, value):
    embeddings, mask = related(), some_mask()
    embeddings[1][:] = value
    result = filled(name, embeddings, mask)
    if name != "zero":
        assert_allclose(result[1], value, rtol=1e-5, atol=1e-9)


def test_a_modality_given_twice(name):
    embeddings, mask = related(), some_mask()
    embeddings[2] = embeddings[0].copy()
    result = filled(name, embeddings, mask)
    if name == "ppca":
        rows = mask[:, 0] & ~mask[:, 2]
        error = np.square(result[2] - embeddings[0])[rows].sum(axis=1).mean()
        assert error < 0.4 * embeddings[0].var(axis=0).sum()


def test_modalities_of_one_dimension(name):
    options = {**OPTIONS, **{model: {**OPTIONS[model], "latent_dim": 1} for model in ("ppca", *SMALL_MODELS)}}
    embeddings, mask = related(dims=(1, 1, 3)), some_mask()
    imputer = imputers.get(name)(**options.get(name, {})).fit(embeddings, mask)
    assert all(np.isfinite(v).all() for v in imputer.impute(embeddings, mask))


def test_items_that_show_nothing(name):
    embeddings, mask = related(), some_mask()
    mask[10:20] = False
    filled(name, embeddings, mask)
    imputer = imputers.get(name)(**OPTIONS.get(name, {})).fit(embeddings, mask)
    assert all(np.isfinite(v).all() for v in imputer.impute([e[10:12] for e in embeddings], mask[10:12]))


def test_no_items_to_impute(name):
    embeddings, mask = related(), some_mask()
    imputer = imputers.get(name)(**OPTIONS.get(name, {})).fit(embeddings, mask)
    assert [v.shape for v in imputer.impute([e[:0] for e in embeddings], mask[:0])] == [(0, 5), (0, 4), (0, 6)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(name, value):
    embeddings, mask = related(), some_mask()
    embeddings[1][np.flatnonzero(mask[:, 1])[2]] = value
    with pytest.raises(CalmrlError, match="modality 1 hold .* values at observed row"):
        imputers.get(name)(**OPTIONS.get(name, {})).fit(embeddings, mask)


@pytest.mark.parametrize("scales", [(1e6, 1.0, 1e-6), (1e-6, 1.0, 1e6), (1e6, 1e6, 1e6), (1e-6, 1e-6, 1e-6)])
def test_units_do_not_matter(name, scales):
    embeddings, mask = related(), some_mask()
    plain = filled_plainly(name)
    scaled = filled(name, [v * scale for v, scale in zip(embeddings, scales, strict=True)], mask)
    tolerance = 1e-3 if name in SMALL_NETWORKS else 1e-6
    for before, after, scale in zip(plain, scaled, scales, strict=True):
        assert_allclose(after / scale, before, rtol=tolerance, atol=tolerance)


def test_items_fewer_than_dimensions(name):
    filled(name, related(12, dims=(40, 30, 50)), some_mask(12))


class TestPPCA:
    @pytest.mark.parametrize("latent_dim", [15, 40])
    def test_as_many_latent_dimensions_as_there_are_dimensions(self, latent_dim):
        with pytest.raises(CalmrlError, match="have only 15 dimensions together"):
            PPCA(latent_dim).fit(related(), some_mask())

    @pytest.mark.parametrize("other", ["ppca-auto", "ppca-student", "ppca-mixture", "ppca-private"])
    def test_so_do_its_relatives(self, other):
        with pytest.raises(CalmrlError, match="modalities have only 15 dimensions together"):
            imputers.get(other)(latent_dim=15).fit(related(), some_mask())

    def test_private_dimensions_count(self):
        with pytest.raises(CalmrlError, match="latent_dim 4 and private_dim 3 make 13 latent .* only 12 dimensions"):
            imputers.get("ppca-private")(latent_dim=4, private_dim=3).fit(related(dims=(4, 4, 4)), some_mask())

    def test_the_largest_latent_dimension_that_is_allowed(self):
        fitted = PPCA(14).fit(related(400), some_mask(400), iterations=200)
        assert np.diff(fitted.log_likelihoods).min() > -1e-6
        assert (fitted.noise > 0).all()

    def test_noise_free_data(self):
        rng = np.random.default_rng(0)
        latent = rng.normal(size=(80, 2))
        embeddings = [latent @ rng.normal(size=(2, d)) for d in (5, 4, 6)]
        mask = some_mask(80)
        mask[:, 0] |= ~mask.any(axis=1)
        fitted = PPCA(2).fit(embeddings, mask, iterations=100)
        result = fitted.impute(embeddings, mask)
        for after, truth in zip(result, embeddings, strict=True):
            assert_allclose(after, truth, atol=1e-2)

    def test_single_modality(self):
        z = np.random.default_rng(0).normal(size=(30, 6))
        mask = np.ones((30, 1), dtype=bool)
        mask[3] = False
        fitted = PPCA(2).fit([z], mask)
        assert_allclose(fitted.impute([z], mask)[0][3], fitted.means[0])

    def test_float32_items_with_a_tiny_spread(self):
        rng = np.random.default_rng(0)
        embeddings = [(1 + 1e-5 * rng.normal(size=(50, d))).astype(np.float32) for d in (5, 4)]
        fitted = PPCA(2).fit(embeddings, some_mask(50, 2))
        assert all(np.isfinite(w).all() for w in fitted.weights)
        assert np.diff(fitted.log_likelihoods).min() > -1e-5
