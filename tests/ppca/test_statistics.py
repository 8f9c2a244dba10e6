"""Sufficient statistics: one pass, many shards, a stream or a device, the same sums; held-out errors from sums equal those from
rows."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from calmrl_lab.data.patterns import observe
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.ppca.held_out import agreements, fold_statistics, log_likelihood, merged, split_by_group, targets_of
from calmrl_lab.ppca.statistics import Statistics

DIMS = (12, 3, 7)


def example(n, seed=0, dims=DIMS, rate=0.6):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, 3))
    embeddings = [5.0 + latent @ rng.normal(size=(3, d)) + 0.5 * rng.normal(size=(n, d)) for d in dims]
    mask = rng.random((n, len(dims))) < rate
    return embeddings, mask


def sums(statistics):
    return {o: (s.count, s.total.numpy(), s.dense().numpy()) for o, s in statistics.patterns.items()}


def assert_same(one, two, rtol=1e-10):
    a, b = sums(one), sums(two)
    assert list(a) == list(b)
    for key in a:
        for x, y in zip(a[key], b[key], strict=True):
            assert_allclose(x, y, rtol=rtol, atol=1e-8)


def part(embeddings, mask, rows):
    return observe([v[rows] for v in embeddings], mask[rows])


def test_they_are_the_sums_they_claim_to_be():
    embeddings, mask = example(80)
    statistics = Statistics.of(observe(embeddings, mask))
    for observed, held in statistics.patterns.items():
        rows = (mask == np.isin(np.arange(3), observed)).all(axis=1)
        z = np.concatenate([embeddings[j][rows] - statistics.shift[j].numpy() for j in observed], axis=1)
        assert held.count == rows.sum()
        assert_allclose(held.total, z.sum(axis=0), atol=1e-10)
        assert_allclose(held.dense(), z.T @ z, atol=1e-10)
        assert_allclose(held.diagonal(), np.square(z).sum(axis=0), atol=1e-10)
        probe = np.random.default_rng(0).normal(size=(z.shape[1], 4))
        assert_allclose(held.times(torch.from_numpy(probe)), z.T @ (z @ probe), atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 150), max_size=4), seed=st.integers(0, 1000))
def test_merged_shards_are_one_pass(cuts, seed):
    embeddings, mask = example(150, seed)
    whole = Statistics.of(observe(embeddings, mask))
    ends = [0, *sorted(cuts), 150]
    shards = [part(embeddings, mask, slice(a, b)) for a, b in itertools.pairwise(ends)]
    # Every shard about its own shift, and as a stream about one.
    assert_same(whole, Statistics(DIMS, whole.shift).merged(merged(Statistics.of(shard) for shard in shards)), rtol=1e-8)
    stream = Statistics(DIMS, whole.shift)
    for shard in shards:
        stream.add(shard)
    assert_same(whole, stream)


def test_block_size_and_row_order_do_not_matter():
    embeddings, mask = example(500)
    order = np.random.default_rng(1).permutation(500)
    whole = Statistics.of(observe(embeddings, mask))
    assert_same(whole, Statistics.of(observe(embeddings, mask), block=7))
    assert_same(whole, Statistics.of(part(embeddings, mask, order), whole.shift))


def test_rare_patterns_keep_rows_and_common_ones_moments():
    embeddings, _ = example(40)
    mask = np.ones((40, 3), dtype=bool)
    mask[:3, 0] = False
    statistics = Statistics.of(observe(embeddings, mask))
    assert statistics.patterns[0, 1, 2].moment is not None
    rare = statistics.patterns[1, 2]
    assert rare.moment is None
    assert sum(len(rows) for rows in rare.rows) == 3 == rare.count
    # 3 rows of 10 coordinates stand just below the border: one more, and the moment is the smaller form.
    more = mask.copy()
    more[3, 0] = False
    assert Statistics.of(observe(embeddings, more)).patterns[1, 2].moment is not None


def test_shards_with_rows_merge_into_rows_whatever_their_shift():
    # Every shard is about its own mean. Moving a pattern's rows must not turn them into a matrix: of eight modalities most patterns
    # are rare, and all their moments together would be 160 times as large as the rows.
    dims = (6, 47, 64, 76, 216, 240, 768, 1408)
    embeddings, mask = example(2000, dims=dims)
    whole = Statistics.of(observe(embeddings, mask))
    shards = [part(embeddings, mask, rows) for rows in (slice(0, 900), slice(900, 2000))]
    both = merged(Statistics.of(shard) for shard in shards)
    assert len(both.patterns) > 230
    assert {o: held.moment is None for o, held in both.patterns.items()} == {
        o: held.moment is None for o, held in whole.patterns.items()
    }
    assert both.bytes == whole.bytes < 2 * sum(v.nbytes for v in embeddings)
    # Forgotten rows have a weight of their own, which moves with them.
    fading = Statistics(dims, whole.shift).merged(Statistics.of(shards[0]).scaled(0.3)).merged(Statistics.of(shards[1]))
    probe = (1, 2, 3)
    weights = np.where(np.arange(2000) < 900, 0.3, 1.0)[:, None]
    shown = (mask == np.isin(np.arange(8), probe)).all(axis=1)
    z = np.concatenate([embeddings[j] - whole.shift[j].numpy() for j in probe], axis=1)[shown]
    assert_allclose(fading.patterns[probe].dense(), (weights[shown] * z).T @ z, rtol=1e-9, atol=1e-8)
    assert_allclose(fading.patterns[probe].total, (weights[shown] * z).sum(axis=0), rtol=1e-9, atol=1e-8)


@pytest.mark.slow
def test_eight_modalities_of_very_different_dimensions_are_fitted():
    dims = (6, 47, 64, 76, 216, 240, 768, 1408)
    embeddings, mask = example(1200, dims=dims)
    fitted = PPCA(3).fit(embeddings, mask, iterations=4)
    assert np.diff(fitted.log_likelihoods).min() > 0
    filled = fitted.impute(embeddings, mask)
    for j, (found, truth) in enumerate(zip(filled, embeddings, strict=True)):
        gaps = ~mask[:, j] & mask.any(axis=1)
        error = np.square(found - truth)[gaps].sum(axis=1).mean()
        assert error < 0.3 * truth.var(axis=0).sum()
        assert error == pytest.approx(fitted.predicted_error(embeddings, mask)[gaps, j].mean(), rel=0.15)


@pytest.mark.parametrize("size", [1, 7, 60])
def test_a_stream_in_small_blocks_is_one_pass(size):
    embeddings, mask = example(400, dims=(30, 20, 10))
    whole = Statistics.of(observe(embeddings, mask))
    stream = Statistics((30, 20, 10), whole.shift)
    forms = set()
    for begun in range(0, 400, size):
        stream.add(part(embeddings, mask, slice(begun, begun + size)))
        forms |= {(held.moment is not None, bool(held.rows)) for held in stream.patterns.values()}
    assert_same(whole, stream)
    # Moments are made when enough rows have come, and more rows wait beside them.
    assert forms >= {(False, True), (True, True)}
    for observed, held in stream.patterns.items():
        probe = torch.from_numpy(np.random.default_rng(0).normal(size=(len(held.total), 3)))
        assert_allclose(held.times(probe), whole.patterns[observed].dense() @ probe, rtol=1e-9)
        assert_allclose(held.diagonal(), whole.patterns[observed].diagonal(), rtol=1e-9)
    one, many = (PPCA(3).fit_statistics(held, 5) for held in (whole, stream))
    assert_allclose(one.log_likelihoods, many.log_likelihoods, rtol=1e-9)


def test_forgetting_is_a_sum_with_weights():
    embeddings, mask = example(200)
    old, new = (
        Statistics.of(part(embeddings, mask, rows), [torch.zeros(d) for d in DIMS]) for rows in (slice(0, 120), slice(120, 200))
    )
    blended = old.scaled(0.25).merged(new)
    for observed, held in blended.patterns.items():
        a, b = old.patterns.get(observed), new.patterns.get(observed)
        expected = (0.25 * a.dense() if a else 0) + (b.dense() if b else 0)
        assert_allclose(held.dense(), expected, rtol=1e-12)
        assert held.count == (0.25 * a.count if a else 0) + (b.count if b else 0)
    # Items that all count double change nothing but the likelihood's unit.
    once, twice = (PPCA(2).fit_statistics(s, iterations=5) for s in (new, new.scaled(2.0)))
    assert_allclose(once.noise, twice.noise, rtol=1e-8)
    assert_allclose(2 * once.log_likelihoods, twice.log_likelihoods, rtol=1e-8)


def test_forgetting_follows_what_changes():
    # A stream whose relation between the modalities turns over: what is forgotten no longer misleads.
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 2))

    def batch(sign):
        latent = rng.normal(size=(200, 2))
        values = [latent @ weights.T, sign * latent @ weights.T]
        return [v + 0.3 * rng.normal(size=v.shape) for v in values]

    everything, fading = None, None
    for turn in range(8):
        new = Statistics.of(observe(batch(1 if turn < 4 else -1), np.ones((200, 2), dtype=bool)), [torch.zeros(6)] * 2)
        everything = new if everything is None else everything.merged(new)
        fading = new if fading is None else fading.scaled(0.5).merged(new)
    test, mask = batch(-1), np.tile([True, False], (200, 1))
    errors = [
        np.square(PPCA(2).fit_statistics(held, 20).impute(test, mask)[1] - test[1]).sum(axis=1).mean()
        for held in (everything, fading)
    ]
    assert errors[1] < 0.35 * errors[0]


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_low_precision_rows_lose_no_more_than_they_have_lost(kind):
    embeddings, mask = example(3000)
    rounded = [torch.tensor(v).to(kind) for v in embeddings]
    low = Statistics.of(observe(rounded, torch.tensor(mask)))
    exact = Statistics.of(observe([v.double() for v in rounded], torch.tensor(mask)), low.shift)
    for observed, held in exact.patterns.items():
        scale = float(held.dense().abs().max())
        assert_allclose(low.patterns[observed].dense() / scale, held.dense() / scale, atol=1e-6)


def test_a_large_mean_costs_no_digits():
    embeddings, mask = example(300)
    moved = [v + 1e6 for v in embeddings]
    near, far = (PPCA(2).fit(v, mask, iterations=10) for v in (embeddings, moved))
    assert_allclose(near.noise, far.noise, rtol=1e-6)
    assert_allclose(np.concatenate(near.means), np.concatenate(far.means) - 1e6, atol=1e-6)


def test_memory_is_counted_and_does_not_grow_with_the_items():
    small, large = (Statistics.of(observe(*example(n))) for n in (400, 4000))
    assert small.bytes == large.bytes > 0


def test_mismatches_are_refused():
    one = Statistics.of(observe(*example(20)))
    other = Statistics.of(observe(*example(20, dims=(12, 3, 8))))
    with pytest.raises(CalmrlError, match="cannot be merged"):
        one.merged(other)
    with pytest.raises(CalmrlError, match="embeddings have dimensions"):
        one.add(observe(*example(20, dims=(12, 3, 8))))
    with pytest.raises(CalmrlError, match="positive factor"):
        one.scaled(0)


def test_co_observation_counts():
    mask = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1], [0, 0, 0]], dtype=bool)
    statistics = Statistics.of(observe(example(4)[0], mask))
    assert statistics.co_observed().tolist() == [[3, 2, 2], [2, 2, 1], [2, 1, 2]]


class TestHeldOut:
    def test_agreement_from_sums_is_that_from_rows(self):
        dims = (4, 30, 3, 8)
        embeddings, mask = example(300, 0, dims)
        new, new_mask = example(80, 1, dims)
        fitted = PPCA(3).fit(embeddings, mask, iterations=5)
        statistics = Statistics.of(observe(new, new_mask))
        assert {held.moment is None for held in statistics.patterns.values()} == {True, False}
        parameters = fitted._started(fitted, statistics, 3)
        reference = [v[mask[:, j]].mean(axis=0) for j, v in enumerate(embeddings)]
        shifted = [torch.from_numpy(r) - s for r, s in zip(reference, statistics.shift, strict=True)]
        targets = targets_of([(0,), (1, 3), (0, 1, 2), (2, 3)], 4)
        for (observed, missing), found in agreements(statistics, parameters, shifted, targets).items():
            rows = new_mask[:, [*observed, missing]].all(axis=1)
            shown = np.zeros((80, 4), dtype=bool)
            shown[:, observed] = True
            x = new[missing][rows] - reference[missing]
            p = fitted.impute(new, shown)[missing][rows] - reference[missing]
            expected = [rows.sum(), (x * x).sum(), (x * p).sum(), (p * p).sum()]
            assert_allclose([found.count, found.energy, found.cross, found.power], expected, rtol=1e-9)
            assert found.error(0.7) == pytest.approx(np.square(x - 0.7 * p).sum(), rel=1e-9)
        assert log_likelihood(statistics, parameters) == pytest.approx(fitted.log_likelihood(new, new_mask).sum(), rel=1e-10)

    def test_a_target_that_no_item_can_serve_counts_nothing(self):
        embeddings, mask = example(40)
        mask[:, 2] &= ~mask[:, 0]
        fitted = PPCA(2).fit(embeddings, mask, iterations=2)
        statistics = Statistics.of(observe(embeddings, mask))
        zero = [torch.zeros(d, dtype=torch.float64) for d in DIMS]
        found = agreements(statistics, fitted._started(fitted, statistics, 2), zero, [((0,), 2)])
        assert found[(0,), 2].count == 0

    def test_folds_keep_groups_together_and_are_even(self):
        groups = np.repeat(np.arange(60), np.random.default_rng(0).integers(1, 6, size=60))
        fold = split_by_group(len(groups), 5, groups, seed=0)
        assert all(len(set(fold[groups == g])) == 1 for g in range(60))
        assert np.ptp(np.bincount(fold, minlength=5)) <= 5
        assert (fold == split_by_group(len(groups), 5, groups, seed=0)).all()

    def test_folds_add_up_to_the_whole(self):
        data = observe(*example(200))
        parts = fold_statistics(data, split_by_group(200, 4, None, seed=1))
        assert len(parts) == 4
        assert_same(Statistics.of(data), merged(parts))
