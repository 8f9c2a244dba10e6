"""Whole tables at once: intervals cover what they should, differences are paired, Holm's rule is Holm's rule."""

import numpy as np
import pytest

from calmrl_lab.evaluation import significance
from calmrl_lab.evaluation.significance import Comparison, Resamples, Sums, corrected_family, estimate, paired


def sums(values):
    """values [seeds, groups]: one query per group."""
    values = np.asarray(values, dtype=float)[:, :, None]
    groups = tuple(map(str, range(values.shape[1])))
    return Sums(tuple(range(len(values))), groups, values, np.ones_like(values))


def test_the_mean_counts_seeds_alike_and_queries_alike():
    #          two queries in group a, one in group b
    totals, counts = np.array([[[1.0], [1.0]], [[0.0], [1.0]]]), np.array([[[2.0], [1.0]], [[2.0], [1.0]]])
    value, _ = Resamples(("a", "b"), replicates=10).means(Sums((0, 1), ("a", "b"), totals, counts))
    assert value == pytest.approx([(2 / 3 + 1 / 3) / 2])


def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    generator, covered = np.random.default_rng(0), 0
    resamples = Resamples(tuple(map(str, range(150))), replicates=400)
    for _ in range(120):
        value, replicates = resamples.means(sums(generator.uniform(size=(1, 150)) < 0.3))
        found = estimate(value[0], replicates[:, 0])
        covered += found.low <= 0.3 <= found.high
    assert 0.88 <= covered / 120 <= 1.0


def test_seeds_widen_the_interval_when_they_disagree():
    agree = sums(np.tile(np.linspace(0, 1, 40), (3, 1)))
    disagree = sums(np.tile(np.linspace(0, 1, 40), (3, 1)) + np.array([[-0.3], [0.0], [0.3]]))
    resamples = Resamples(agree.groups, replicates=500)
    narrow, wide = (estimate(v[0], r[:, 0]) for v, r in map(resamples.means, (agree, disagree)))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_many_columns_at_once_agree_with_one_interval_at_a_time():
    generator = np.random.default_rng(3)
    values, group = generator.uniform(size=(3, 200)), generator.integers(0, 80, 200)
    groups = tuple(map(str, range(80)))
    totals = np.stack([np.bincount(group, row, 80) for row in values])[:, :, None]
    counts = np.stack([np.bincount(group, minlength=80)] * 3).astype(float)[:, :, None]
    value, replicates = Resamples(groups).means(Sums((0, 1, 2), groups, totals, counts))
    fast = estimate(value[0], replicates[:, 0])
    slow = significance.interval(values.ravel(), generator, np.tile(group, 3), np.repeat(np.arange(3), 200))
    assert fast.value == pytest.approx(slow.value)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high), abs=0.15 * (slow.high - slow.low))


def test_a_paired_difference_of_one_column_is_that_of_its_rows():
    generator = np.random.default_rng(4)
    a, b = generator.uniform(size=(2, 3, 90))
    first, second = sums(a), sums(b)
    found = paired(first, [0], second, [0])
    seeds, groups = np.repeat(np.arange(3), 90), np.tile(np.arange(90), 3)
    rows = significance.compare(a.ravel(), b.ravel(), generator, groups, seeds)
    assert (found.value, found.low, found.high, found.p) == pytest.approx((rows.value, rows.low, rows.high, rows.p))


def test_rare_columns_weigh_as_much_as_the_others():
    #                     column 0: two queries, column 1: one query, only in group a
    totals, counts = np.array([[[1.0, 0.0], [1.0, 0.0]]]), np.array([[[1.0, 1.0], [1.0, 0.0]]])
    shares = Sums((0,), ("a", "b"), totals, counts).shares([0, 1])
    assert shares.mean() == pytest.approx((1.0 + 0.0) / 2)


def test_a_constant_gain_on_very_unequal_queries_is_found_because_the_difference_is_paired():
    base = np.random.default_rng(1).uniform(size=(2, 60))
    found = paired(sums(base + 0.01), [0], sums(base), [0])
    assert found.value == pytest.approx(0.01, abs=1e-9)
    assert found.verdict == 1


def test_without_a_common_seed_there_is_no_difference():
    a, b = sums(np.ones((1, 4))), sums(np.ones((1, 4)))
    assert paired(Sums((0,), a.groups, a.totals, a.counts), [0], Sums((1,), b.groups, b.totals, b.counts), [0]) is None


def test_a_column_that_a_resample_misses_keeps_its_mean():
    totals, counts = np.zeros((1, 2, 1)), np.zeros((1, 2, 1))
    totals[0, 0, 0] = counts[0, 0, 0] = 1
    value, replicates = Resamples(("a", "b"), replicates=200).means(Sums((0,), ("a", "b"), totals, counts))
    assert value[0] == 1
    assert np.isfinite(replicates).all()


def test_holm_by_hand():
    raw = {name: Comparison(1.0, 0.5, 1.5, p, 9, 1, p) for name, p in {"a": 0.01, "b": 0.04, "c": 0.03}.items()}
    corrected = {name: found.corrected for name, found in corrected_family(raw).items()}
    assert corrected == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


@pytest.mark.parametrize(
    ("low", "high", "corrected", "verdict"), [(1, 2, 0.01, 1), (-2, -1, 0.01, -1), (-1, 2, 0.01, 0), (1, 2, 0.2, 0)]
)
def test_a_verdict_needs_the_interval_and_the_corrected_p(low, high, corrected, verdict):
    assert Comparison((low + high) / 2, low, high, corrected / 2, 9, 1, corrected).verdict == verdict


def test_a_median_is_resampled_by_groups_and_seeds():
    generator = np.random.default_rng(0)
    group, seed = np.tile(np.repeat(np.arange(30), 2), 3), np.repeat(np.arange(3), 60)
    values = generator.integers(1, 50, len(group)).astype(float)
    found = Resamples([str(name) for name in range(30)]).median(values, group, seed, 3)
    assert found.value == np.median(values)
    plain = []
    for _ in range(1000):
        groups, seeds = generator.integers(30, size=30), generator.integers(3, size=3)
        plain.append(np.median(np.concatenate([values[(group == g) & (seed == s)] for g in groups for s in seeds])))
    low, high = np.quantile(plain, [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low, abs=2.5), pytest.approx(high, abs=2.5))


def test_a_share_of_nothing_is_no_certainty():
    assert estimate(0.0, np.zeros(10)).high == 0
    assert estimate(0.0, np.zeros(10), units=29).high == pytest.approx(1 - 0.025 ** (1 / 29))
