"""The rivals of PPCA do what their names say: each against a library, a closed form or data made for it."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.cluster import KMeans
from sklearn.linear_model import LinearRegression
from sklearn.linear_model import Ridge as Penalised

from calmrl_lab.imputers import imputers
from calmrl_lab.imputers.ridge import _STRENGTHS
from calmrl_lab.imputers.soft_impute import SoftImpute


def related(n, dims=(5, 4), q=2, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, q))
    return [3.0 + latent @ np.random.default_rng(d).normal(size=(q, d)) + noise * rng.normal(size=(n, d)) for d in dims]


def hidden(n, k, index):
    """A mask that hides modality `index` from the second half of the items."""
    mask = np.ones((n, k), dtype=bool)
    mask[n // 2 :, index] = False
    return mask


def scaled(values):
    """What rivals work on: mean zero and total variance one."""
    centred = values - values.mean(axis=0)
    return centred / np.sqrt(np.square(centred).sum(axis=1).mean())


def test_ridge_takes_the_strength_of_least_error_on_items_left_out():
    embeddings, mask = related(30, dims=(12, 3), noise=2.0), hidden(30, 2, 1)
    filled = imputers.get("ridge")().fit(embeddings, mask).impute(embeddings, mask)[1]
    known = slice(0, 15)
    # The mean and scale of a modality are those of all its observed rows.
    x, y = scaled(embeddings[0]), scaled(embeddings[1][known])
    unit = np.square(x[known] - x[known].mean(axis=0)).sum() / 12

    def left_out(strength):
        parts = []
        for i in range(15):
            others = np.delete(np.arange(15), i)
            # Centred once on all rows, as a leave-one-out shortcut does.
            fitted = Penalised(strength * unit, fit_intercept=True).fit(x[others], y[others])
            parts.append(np.square(fitted.predict(x[i : i + 1]) - y[i]).sum())
        return sum(parts)

    best = min(_STRENGTHS, key=left_out)
    assert _STRENGTHS[0] < best < _STRENGTHS[-1]
    expected = Penalised(best * unit).fit(x[known], embeddings[1][known]).predict(x[15:])
    assert_allclose(filled[15:], expected, rtol=1e-8)


def test_chained_ridge_with_one_gap_is_ridge():
    embeddings, mask = related(60, dims=(6, 4, 5)), hidden(60, 3, 2)
    imputer = imputers.get("iterative-ridge")(strength=0.3).fit(embeddings, mask)
    filled = imputer.impute(embeddings, mask)[2]
    known = slice(0, 30)
    x = np.concatenate([scaled(embeddings[0]), scaled(embeddings[1])], axis=1)
    y, centre = embeddings[2][known], embeddings[2][known].mean(axis=0)
    penalty = 0.3 * np.square(x[known]).sum() / 10
    expected = centre + Penalised(penalty, fit_intercept=False).fit(x[known], y - centre).predict(x[30:])
    assert_allclose(filled[30:], expected, rtol=1e-8)


def test_chained_ridge_hands_on_what_it_has_filled():
    # The third modality depends on the second only, which half of its items lack and the first one tells.
    rng = np.random.default_rng(0)
    first = rng.normal(size=(400, 4))
    second = first @ rng.normal(size=(4, 4)) + 0.1 * rng.normal(size=(400, 4))
    third = second @ rng.normal(size=(4, 4)) + 0.1 * rng.normal(size=(400, 4))
    embeddings, mask = [first, second, third], np.ones((400, 3), dtype=bool)
    mask[:200, 2], mask[200:, 0] = False, False
    shown = np.tile([True, False, False], (400, 1))
    filled = imputers.get("iterative-ridge")().fit(embeddings, mask).impute(embeddings, shown)
    assert np.square(filled[2] - third).sum() < 0.2 * np.square(third - third.mean(axis=0)).sum()


def test_cca_of_full_rank_is_least_squares_and_of_rank_one_its_leading_direction():
    embeddings, mask = related(200, dims=(6, 4)), hidden(200, 2, 1)
    known = slice(0, 100)
    full = imputers.get("cca")(components=4, shrinkage=1e-12).fit(embeddings, mask).impute(embeddings, mask)[1]
    expected = LinearRegression().fit(embeddings[0][known], embeddings[1][known]).predict(embeddings[0][100:])
    assert_allclose(full[100:], expected, rtol=1e-6)
    one = imputers.get("cca")(components=1, shrinkage=1e-12).fit(embeddings, mask).impute(embeddings, mask)[1]
    assert np.linalg.matrix_rank(one[100:] - one[100:].mean(axis=0), tol=1e-8) == 1
    # The direction of the sources that it goes by is the one that correlates most with the targets.
    x, y = (v[known] - v[known].mean(axis=0) for v in embeddings)
    left, right = (np.linalg.qr(v)[0] for v in (x, y))
    strongest = np.linalg.svd(left.T @ right)[1][0]
    score = (one[100:] - one[100:].mean(axis=0)) @ np.ones(4)
    direction = np.linalg.lstsq(embeddings[0][100:] - embeddings[0][100:].mean(axis=0), score, rcond=None)[0]
    best = LinearRegression().fit(y, x @ direction).predict(y)
    assert np.corrcoef(best, x @ direction)[0, 1] == pytest.approx(strongest, rel=1e-6)


def test_soft_impute_reaches_the_fixed_point_of_its_problem():
    embeddings, mask = related(80, dims=(8, 6, 7), noise=0.3), np.random.default_rng(0).random((80, 3)) < 0.7
    mask[~mask.any(axis=1), 0] = True
    imputer = SoftImpute(rank=21, rounds=2000).fit(embeddings, mask)
    rows = [scaled_to(imputer.blocks, j, v) for j, v in enumerate(embeddings)]
    values, shown = torch.from_numpy(np.concatenate(rows, axis=1)), imputer.blocks.expand(torch.from_numpy(mask))
    completed, _, threshold = imputer._complete(torch.where(shown, values, 0.0), torch.from_numpy(mask), 0.1)
    # Singular values of the completed matrix, thresholded, give back what was filled in (Mazumder et al. 2010, eq. 8).
    u, s, v = torch.linalg.svd(completed, full_matrices=False)
    low_rank = (u * (s - threshold).clamp(min=0)) @ v
    assert_allclose(low_rank[~shown], completed[~shown], atol=1e-3)
    assert int((s > threshold).sum()) < 21


def scaled_to(blocks, index, values):
    return (values - blocks.means[index].numpy()) / float(blocks.scales[index])


def test_soft_impute_completes_a_matrix_of_low_rank():
    embeddings, mask = related(200, dims=(8, 6, 7), noise=0.0), np.random.default_rng(0).random((200, 3)) < 0.7
    mask[~mask.any(axis=1), 0] = True
    filled = imputers.get("soft-impute")(rounds=200).fit(embeddings, mask).impute(embeddings, mask)
    for j, (found, truth) in enumerate(zip(filled, embeddings, strict=True)):
        gaps = ~mask[:, j]
        assert np.square(found - truth)[gaps].sum() < 0.1 * np.square(truth - truth.mean(axis=0))[gaps].sum()


def test_group_means_are_those_of_k_means():
    rng = np.random.default_rng(0)
    embeddings = [4 * rng.normal(size=(4, d))[rng.integers(4, size=200)] + rng.normal(size=(200, d)) for d in (5, 7)]
    imputer = imputers.get("group-mean")(clusters=4, rounds=100).fit(embeddings, np.ones((200, 2), dtype=bool))
    # scikit-learn's k-means has nothing to add to where this one stopped.
    rows, centres = np.concatenate([scaled(v) for v in embeddings], axis=1), imputer.centres.numpy()
    found = KMeans(4, init=centres, n_init=1).fit(rows)
    assert_allclose(found.cluster_centers_, centres, atol=1e-12)
    # An item that shows the first modality gets the second of the centre that is nearest in the first.
    filled = imputer.impute(embeddings, np.tile([True, False], (200, 1)))[1]
    nearest = np.square(rows[:, None, :5] - centres[None, :, :5]).sum(axis=2).argmin(axis=1)
    assert_allclose(scaled_to(imputer.blocks, 1, filled), centres[nearest, 5:], atol=1e-12)


@pytest.mark.slow
def test_the_autoencoder_sees_what_no_linear_map_sees():
    # The second modality is the square of the first: uncorrelated, and wholly determined.
    rng = np.random.default_rng(0)
    first = rng.normal(size=(1200, 2))
    embeddings = [first, np.square(first) @ rng.normal(size=(2, 3))]
    mask = np.random.default_rng(1).random((1200, 2)) < 0.8
    mask[~mask.any(axis=1)] = True
    shown = np.tile([True, False], (1200, 1))

    def error(name, **options):
        filled = imputers.get(name)(**options).fit(embeddings, mask).impute(embeddings, shown)[1]
        return np.square(filled - embeddings[1]).sum() / np.square(embeddings[1] - embeddings[1].mean(axis=0)).sum()

    assert error("ridge") > 0.9
    assert error("autoencoder", epochs=60) < 0.5


def test_zero_is_zero():
    embeddings, mask = related(10), hidden(10, 2, 0)
    filled = imputers.get("zero")().fit(embeddings, mask).impute(embeddings, mask)
    assert (filled[0][5:] == 0).all()
