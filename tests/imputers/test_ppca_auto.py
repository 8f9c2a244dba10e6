"""PPCA that checks itself: never worse than the mean by more than chance, and its predicted errors are the real ones."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers.mean import Mean
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.imputers.ppca_auto import AutoPPCA, gated
from calmrl_lab.imputers.ppca_private import PrivatePPCA
from calmrl_lab.imputers.ppca_student import StudentPPCA
from calmrl_lab.imputers.ridge import Ridge
from calmrl_lab.ppca.held_out import Agreement


def related(n, dims=(20, 15, 10), q=4, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, q))
    return [latent @ np.random.default_rng(99 + d).normal(size=(q, d)) + noise * rng.normal(size=(n, d)) for d in dims]


def unrelated(n, dims=(20, 15, 10), q=4, seed=0):
    """Each modality has structure, and none of it is shared: everything PPCA finds between modalities is chance."""
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(n, q)) @ np.random.default_rng(d).normal(size=(q, d)) + 0.3 * rng.normal(size=(n, d)) for d in dims
    ]


def masks(n, k, rate, seed=1):
    rng = np.random.default_rng(seed)
    mask = rng.random((n, k)) < rate
    mask[np.arange(n), rng.integers(k, size=n)] = True
    return mask


def errors(imputer, embeddings, mask):
    filled = imputer.impute(embeddings, mask)
    return np.array(
        [np.square(f - e)[~mask[:, j]].sum(axis=1).mean() for j, (f, e) in enumerate(zip(filled, embeddings, strict=True))]
    )


def test_where_modalities_are_related_it_is_as_good_as_the_model_knowing_q():
    train, test = related(400), related(400, seed=5)
    mask, shown = masks(400, 3, 0.6), masks(400, 3, 0.6, seed=2)
    auto = AutoPPCA().fit(train, mask)
    known = PPCA(4).fit(train, mask, iterations=30)
    assert (errors(auto, test, shown) < 1.05 * errors(known, test, shown)).all()
    assert (errors(auto, test, shown) < 0.6 * errors(Mean().fit(train, mask), test, shown)).all()


def test_where_nothing_is_shared_it_is_the_mean():
    train, test = unrelated(60), unrelated(600, seed=5)
    mask, shown = masks(60, 3, 0.6), masks(600, 3, 0.6, seed=2)
    auto, mean, plain = (imputer.fit(train, mask) for imputer in (AutoPPCA(), Mean(), PPCA(12)))
    assert (errors(plain, test, shown) > 1.1 * errors(mean, test, shown)).all()
    assert (errors(auto, test, shown) < 1.02 * errors(mean, test, shown)).all()


def test_predicted_errors_are_real_where_the_model_is_over_confident():
    train, test = related(80, noise=2.0), related(800, noise=2.0, seed=5)
    mask, shown = masks(80, 3, 0.7), masks(800, 3, 0.7, seed=2)
    auto, plain = AutoPPCA().fit(train, mask), PPCA(16).fit(train, mask)
    real = errors(auto, test, shown)
    predicted = auto.predicted_error(test, shown)
    for j in range(3):
        assert predicted[~shown[:, j], j].mean() == pytest.approx(real[j], rel=0.2)
        assert plain.predicted_error(test, shown)[~shown[:, j], j].mean() < 0.8 * errors(plain, test, shown)[j]
    assert (predicted[shown] == 0).all()


def test_groups_stay_together():
    # Ten copies of each item: without groups, copies of a held-out item are in training and everything looks predictable.
    base = unrelated(40)
    train = [np.repeat(v, 10, axis=0) for v in base]
    mask = np.repeat(masks(40, 3, 0.6), 10, axis=0)
    blind = AutoPPCA(latent_dim=12, ridge=0.0).fit(train, mask)
    aware = AutoPPCA(latent_dim=12, ridge=0.0).fit(train, mask, groups=np.repeat(np.arange(40), 10))
    said = [np.mean([error / of.variances[m] for (_, m), error in of.errors.items()]) for of in (blind, aware)]
    assert said[0] < 0.6 * said[1]
    assert said[1] > 0.8
    with pytest.raises(CalmrlError, match="3 groups were given for 400 items"):
        aware.fit(train, mask, groups=[1, 2, 3])


def test_it_saves_and_goes_on():
    train, mask = related(120), masks(120, 3, 0.6)
    auto = AutoPPCA(folds=3).fit(train, mask)
    loaded = AutoPPCA.from_state(auto.state())
    assert loaded.options() == auto.options()
    assert loaded.choice == auto.choice
    for a, b in zip(auto.impute(train, mask), loaded.impute(train, mask), strict=True):
        assert (a == b).all()
    assert_allclose(auto.predicted_error(train, mask), loaded.predicted_error(train, mask))
    again = AutoPPCA(folds=3).fit(train, mask, iterations=3, start=loaded)
    assert again.choice == auto.choice
    assert len(again.log_likelihoods) == 4


@pytest.mark.parametrize("hides", [(), (2,)])
def test_gaps_that_training_never_had_are_filled_and_predicted_all_the_same(hides):
    # Training items are complete, or lack one modality only; new items show any one or two.
    train, test = related(200, noise=2.0), related(900, noise=2.0, seed=5)
    mask = np.ones((200, 3), dtype=bool)
    mask[:100, list(hides)] = False
    shown = masks(900, 3, 0.5, seed=2)
    auto, mean = AutoPPCA().fit(train, mask), Mean().fit(train, mask)
    assert (errors(auto, test, shown) < errors(mean, test, shown)).all()
    filled, predicted = auto.impute(test, shown), auto.predicted_error(test, shown)
    for pattern in ((True, False, False), (False, True, False), (False, False, True), (True, True, False), (False, True, True)):
        rows = (shown == pattern).all(axis=1)
        for j in np.flatnonzero(~np.array(pattern)):
            real = np.square(filled[j] - test[j])[rows].sum(axis=1).mean()
            assert predicted[rows, j].mean() == pytest.approx(real, rel=0.25)
    # One modality says less than two.
    assert auto.errors[(1,), 0] > auto.errors[(1, 2), 0]


@pytest.mark.slow
def test_a_target_that_was_not_checked_goes_by_the_largest_part_of_it_that_was():
    dims = (8, 6, 7, 5)
    train, mask = related(200, dims), masks(200, 4, 0.6)
    auto = AutoPPCA(latent_dim=4).fit(train, mask)
    del auto.gains[(0, 1, 2), 3]
    shown = np.tile([True, True, True, False], (200, 1))
    parts = [(0, 1), (0, 2), (1, 2)]
    assert (auto.predicted_error(train, shown)[:, 3] == min(auto.errors[part, 3] for part in parts)).all()
    for part in [*parts, (0,), (1,), (2,)]:
        del auto.gains[part, 3]
    assert (auto.predicted_error(train, shown)[:, 3] == auto.pooled_errors[3]).all()


def test_there_is_a_limit_to_what_is_checked_and_training_comes_first(monkeypatch):
    monkeypatch.setattr("calmrl_lab.imputers.ppca_auto._MOST_TARGETS", 7)
    dims = (8, 6, 7, 5)
    train, mask = related(200, dims), np.ones((200, 4), dtype=bool)
    mask[:50, [1, 3]] = False
    auto = AutoPPCA(latent_dim=4).fit(train, mask)
    assert set(auto.gains) == {((0, 2), 1), ((0, 2), 3), ((0,), 1), ((0,), 2), ((0,), 3), ((1,), 0), ((1,), 2)}
    assert all(np.isfinite(v).all() for v in auto.impute(train, np.tile([True, True, False, False], (200, 1))))


def test_an_item_that_shows_nothing_is_promised_the_mean():
    train, mask = related(120), masks(120, 3, 0.6)
    auto, mean = AutoPPCA(latent_dim=4).fit(train, mask), Mean().fit(train, mask)
    nothing = np.zeros((120, 3), dtype=bool)
    assert_allclose(auto.predicted_error(train, nothing), mean.predicted_error(train, nothing))
    assert_allclose(auto.impute(train, nothing)[0], mean.impute(train, nothing)[0])


def test_too_few_items_to_check_give_the_mean():
    train, mask = related(3), np.ones((3, 3), dtype=bool)
    mask[0, 1] = mask[1, 2] = False
    auto = AutoPPCA().fit(train, mask)
    mean = Mean().fit(train, mask)
    for a, b in zip(auto.impute(train, mask), mean.impute(train, mask), strict=True):
        assert_allclose(a, b)


def test_the_gate_by_hand():
    # x'x = 10 an item and p'p = x'p = 4: the conditional mean takes 4 of 10 away, in every fold.
    helpful = [Agreement(10, 100, 40, 40)] * 4
    assert gated(helpful, 7.0) == (1.0, 6.0)
    # It helps in one fold and harms in another: beyond chance, nothing.
    assert gated([Agreement(10, 100, 40, 40), Agreement(10, 100, -40, 40)], 7.0) == (0.0, 10.0)
    assert gated([], 7.0) == (0.0, 7.0)
    assert gated([Agreement(10, 100, 40, 40), Agreement()], 7.0) == (0.0, 10.0)


def test_settings_can_be_given():
    train, mask = related(80), masks(80, 3, 0.7)
    auto = AutoPPCA(latent_dim=3, ridge=5.0).fit(train, mask)
    assert auto.choice.latent_dim == 3
    assert auto.weights[0].shape == (20, 3)
    with pytest.raises(CalmrlError, match="only 45 dimensions"):
        AutoPPCA(latent_dim=45).fit(train, mask)
    with pytest.raises(CalmrlError, match="holds items out"):
        AutoPPCA().fit_statistics(None)


def test_latent_dim_auto_of_plain_ppca_finds_the_right_size():
    train, mask = related(3000, q=8, noise=0.7), masks(3000, 3, 0.8)
    assert PPCA("auto").fit(train, mask, iterations=5).weights[0].shape[1] == 8
    with pytest.raises(CalmrlError, match="latent_dim is 'automatic'"):
        PPCA("automatic")


def test_iterations_stop_where_the_held_out_error_turns():
    # More coordinates than items: the likelihood goes on rising while imputation gets worse.
    train, mask = related(40, noise=2.0), masks(40, 3, 0.7)
    test, hidden = related(400, seed=5, noise=2.0), masks(400, 3, 0.6, seed=6)
    auto = AutoPPCA(latent_dim=20, ridge=0.0).fit(train, mask, iterations=128)
    assert auto.choice.iterations < 32
    stopped = PPCA(20).fit(train, mask, iterations=auto.choice.iterations)
    onward = PPCA(20).fit(train, mask, iterations=128, start=stopped)
    assert onward.log_likelihoods[-1] > stopped.log_likelihoods[-1]
    assert errors(stopped, test, hidden).sum() < 0.8 * errors(onward, test, hidden).sum()


def test_a_regression_fills_where_modalities_share_more_than_a_latent_vector_holds():
    train, test = related(500, q=12, noise=0.3), related(400, q=12, noise=0.3, seed=5)
    mask, shown = masks(500, 3, 0.7), masks(400, 3, 0.7, seed=2)
    small = AutoPPCA(latent_dim=1).fit(train, mask)
    assert small.regressions
    assert set(small.regressions) <= set(small.gains)
    ridge, plain = Ridge().fit(train, mask), PPCA(1).fit(train, mask)
    assert (errors(small, test, shown) < 1.1 * errors(ridge, test, shown)).all()
    assert (errors(small, test, shown) < 0.7 * errors(plain, test, shown)).all()
    again = AutoPPCA.from_state(small.state())
    for ours, theirs in zip(small.impute(test, shown), again.impute(test, shown), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    promised, filled = small.predicted_error(test, shown), small.impute(test, shown)
    for j in range(3):
        # Of what the two others say there are some sixty items; of less, too few to tell.
        rows = ~shown[:, j] & (shown.sum(axis=1) == 2)
        squared = np.square(filled[j] - test[j])[rows].sum(axis=1)
        assert promised[rows, j].mean() == pytest.approx(squared.mean(), rel=0.25)


def test_a_regression_of_more_dimensions_than_items_is_told_in_the_coordinates_of_the_features():
    train, test = related(90, dims=(200, 150), q=6, noise=0.5), related(200, dims=(200, 150), q=6, noise=0.5, seed=5)
    mask = np.ones((90, 2), dtype=bool)
    mask[60:75, 0], mask[75:, 1] = False, False
    shown = np.ones((200, 2), dtype=bool)
    shown[:100, 0], shown[100:, 1] = False, False
    auto = AutoPPCA(latent_dim=1).fit(train, mask)
    assert auto.regressions
    assert (errors(auto, test, shown) < 0.8 * errors(Mean().fit(train, mask), test, shown)).all()


def test_the_mirrored_model_fills_mirrored_embeddings():
    train, test = related(500, q=12, noise=0.3), related(200, q=12, noise=0.3, seed=5)
    mask, shown, signs = masks(500, 3, 0.7), masks(200, 3, 0.7, seed=2), (1, -1, -1)
    for imputer in (AutoPPCA(latent_dim=1), PPCA(4), PrivatePPCA(4), StudentPPCA(4)):
        fitted = imputer.fit(train, mask)
        turned = fitted.mirrored(signs).impute([sign * rows for sign, rows in zip(signs, test, strict=True)], shown)
        for sign, ours, theirs in zip(signs, fitted.impute(test, shown), turned, strict=True):
            assert_allclose(sign * theirs, ours, rtol=1e-6, atol=1e-9)
        assert not isinstance(imputer, AutoPPCA) or fitted.regressions
