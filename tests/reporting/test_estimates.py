"""Intervals cover what they should, differences are paired, Holm's rule is Holm's rule."""

import numpy as np
import pytest

from calmrl_lab.reporting.estimates import Difference, Resamples, Sums, difference, estimate, holm


def sums(values):
    """values [seeds, groups]: one query a group."""
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


def test_a_constant_gain_on_very_unequal_queries_is_found_because_the_difference_is_paired():
    base = np.random.default_rng(1).uniform(size=(2, 60))
    resamples = Resamples(sums(base).groups, replicates=2000)
    (a, ra), (b, rb) = resamples.means(sums(base + 0.01)), resamples.means(sums(base))
    found = difference(a[0] - b[0], ra[:, 0] - rb[:, 0])
    assert found.value == pytest.approx(0.01, abs=1e-6)
    assert found.verdict == 1


def test_a_column_that_a_resample_misses_keeps_its_mean():
    totals, counts = np.zeros((1, 2, 1)), np.zeros((1, 2, 1))
    totals[0, 0, 0] = counts[0, 0, 0] = 1
    value, replicates = Resamples(("a", "b"), replicates=200).means(Sums((0,), ("a", "b"), totals, counts))
    assert value[0] == 1
    assert np.isfinite(replicates).all()


def test_holm_by_hand():
    raw = {name: Difference(1.0, 0.5, 1.5, p, p) for name, p in {"a": 0.01, "b": 0.04, "c": 0.03}.items()}
    corrected = {name: found.corrected for name, found in holm(raw).items()}
    assert corrected == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


@pytest.mark.parametrize(
    ("low", "high", "corrected", "verdict"), [(1, 2, 0.01, 1), (-2, -1, 0.01, -1), (-1, 2, 0.01, 0), (1, 2, 0.2, 0)]
)
def test_a_verdict_needs_the_interval_and_the_corrected_p(low, high, corrected, verdict):
    assert Difference((low + high) / 2, low, high, corrected / 2, corrected).verdict == verdict
