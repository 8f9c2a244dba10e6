"""Intervals that cover what they promise, tests that find what was planted and keep their level."""

import numpy as np
import pytest

from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.significance import compare, holm, interval, share_limits


def rng(seed=0):
    return np.random.default_rng(seed)


def slow_interval(values, groups, generator, replicates):
    """Draw groups one by one, pool their rows."""
    names = np.unique(groups)
    means = []
    for _ in range(replicates):
        rows = np.concatenate([values[groups == name] for name in generator.choice(names, len(names))])
        means.append(rows.mean())
    return np.quantile(means, [0.025, 0.975])


def test_the_weighted_bootstrap_is_the_plain_one():
    groups = np.repeat(np.arange(40), rng().integers(1, 6, 40))
    values = rng(1).random(len(groups)) + 0.3 * (groups % 3)
    found = interval(values, rng(2), groups, replicates=4000)
    assert found.value == pytest.approx(values.mean())
    assert found.units == 40
    np.testing.assert_allclose([found.low, found.high], slow_interval(values, groups, rng(3), 4000), atol=0.01)


def test_the_same_generator_gives_the_same_interval():
    values = rng().random(50)
    assert interval(values, rng(1)) == interval(values, rng(1))


def test_groups_of_copies_count_once():
    values = rng().random(60)
    single = interval(values, rng(1))
    copied = interval(np.repeat(values, 10), rng(1), np.repeat(np.arange(60), 10))
    assert copied.high - copied.low == pytest.approx(single.high - single.low)
    naive = interval(np.repeat(values, 10), rng(1))
    assert naive.high - naive.low < 0.5 * (single.high - single.low)


def test_seeds_count_alike_and_widen():
    values = np.concatenate([np.zeros(10), np.ones(90)])
    seeds = np.repeat([0, 1], [10, 90])
    assert interval(values, rng(), seeds=seeds).value == 0.5
    noise = rng(4).standard_normal((5, 100))
    shifted = noise + np.array([0, 1, 2, 3, 4])[:, None]
    seeds, groups = np.repeat(np.arange(5), 100), np.tile(np.arange(100), 5)
    narrow, wide = (interval(v.ravel(), rng(5), groups, seeds) for v in (noise, shifted))
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_one_value_has_no_width_and_no_value_is_refused():
    found = interval(np.array([0.5]), rng())
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)
    with pytest.raises(CalmrlError, match="at least one value"):
        interval(np.array([]), rng())
    with pytest.raises(CalmrlError, match="1 of 2 values are NaN"):
        interval(np.array([1.0, np.nan]), rng())
    with pytest.raises(CalmrlError, match="groups must be one per value"):
        interval(np.ones(3), rng(), groups=np.ones(2))


def test_no_hit_at_all_is_no_certainty():
    nothing = interval(np.zeros(60), rng(), top=100)
    # P(no hit in 60 draws) is 2.5 % at the upper limit.
    assert (nothing.low, nothing.value) == (0, 0)
    assert (1 - nothing.high / 100) ** 60 == pytest.approx(0.025)
    everything = interval(np.full(120, 100.0), rng(), np.repeat(np.arange(60), 2), top=100)
    assert (everything.low, everything.high) == (pytest.approx(100 - nothing.high), 100)
    assert share_limits(0.1, 0.4, 60) == (0.1, 0.4)
    # The mean over directions is resampled as a linearised ratio, which may leave the range.
    assert share_limits(-0.01, 1.02, 60) == (0.0, 1.0)
    assert share_limits(93, 100.1, 60, top=100) == (93, 100)
    halves = interval(np.full(60, 0.5), rng(), top=1)
    assert (halves.low, halves.high) == (0.5, 0.5)


def test_equal_runs_are_not_different():
    values = rng().random(100)
    found = compare(values, values, rng(1))
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.verdict == 0


def test_the_sign_flip_test_is_exact_on_few_groups():
    # Four differences of one sign: 2 of 16 patterns are as extreme.
    found = compare(np.array([1.0, 2.0, 3.0, 4.0]), np.zeros(4), rng(), replicates=20000)
    assert found.p == pytest.approx(2 / 16, abs=0.01)


def test_a_pairing_that_does_not_fit_is_refused():
    with pytest.raises(CalmrlError, match="same queries on both sides, got 3 and 2"):
        compare(np.ones(3), np.ones(2), rng())


def test_one_group_in_several_seeds_rests_on_the_seeds():
    found = compare(np.array([1.0, 2.0, 3.0]), np.zeros(3), rng(), np.zeros(3), np.arange(3))
    standard = np.std([1, 2, 3], ddof=1) / 3**0.5
    assert (found.high - found.value) / standard == pytest.approx(4.303, abs=1e-2)  # Student's t, 2 degrees of freedom


def test_holm_by_hand():
    #  sorted: .01 x 4 = .04, .02 x 3 = .06, .03 x 2 = .06, .5 x 1 = .5
    assert holm({"a": 0.03, "b": 0.01, "c": 0.5, "d": 0.02}) == pytest.approx({"a": 0.06, "b": 0.04, "c": 0.5, "d": 0.06})
    assert holm({}) == {}
    assert holm({"a": 0.7, "b": 0.9}) == pytest.approx({"a": 1.0, "b": 1.0})
    with pytest.raises(CalmrlError, match="between 0 and 1"):
        holm({"a": 1.5})


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_intervals_cover_the_truth(rate):
    covered = 0
    group = np.repeat(np.arange(150), 4)
    for trial in range(400):
        generator = rng(trial)
        # Queries of one group succeed together half of the time.
        together = np.repeat(generator.random(150) < 0.5, 4)
        hits = np.where(together, np.repeat(generator.random(150), 4), generator.random(600)) < rate
        found = interval(hits.astype(float), rng(10_000 + trial), group, replicates=400)
        covered += found.low <= rate <= found.high
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("units", [30, 75, 280])
def test_intervals_of_rare_hits_do_not_promise_what_they_cannot_keep(units):
    """A few queries and a recall near chance: without `top` this covers the truth 13 % of the time at worst."""
    for rate in (0.005, 0.0133, 0.03, 0.05):
        covered = 0
        for trial in range(300):
            hits = (rng(trial).random(units) < rate).astype(float)
            found = interval(hits, rng(90_000 + trial), replicates=400, top=1.0)
            covered += found.low <= rate <= found.high
        assert covered / 300 >= 0.85


def simulated_pair(generator, queries, seeds, planted):
    """Recalls at 1 of two methods: most queries agree, 3 % fall either way, seeds differ in luck, queries in how often they flip."""
    luck = generator.normal(0, 0.002 if seeds > 1 else 0.0, (seeds, 1))
    lean = generator.normal(0, 0.01, (1, queries))
    draw = generator.random((seeds, queries))
    difference = (draw < 0.03 + planted + luck + lean).astype(float) - (draw > 0.97).astype(float)
    base = (generator.random((seeds, queries)) < 0.5).astype(float)
    return np.maximum(difference, 0) + base * (difference == 0), np.maximum(-difference, 0) + base * (difference == 0)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "power"), [(1, 0.7), (3, 0.4), (5, 0.7)])
def test_the_paired_test_keeps_its_level_and_finds_a_planted_point(seeds, power):
    queries, trials = 5000, 300
    group, seed = np.tile(np.arange(queries), seeds), np.repeat(np.arange(seeds), queries)
    found, covered = {0.0: 0, 0.01: 0}, 0
    for trial in range(trials):
        for planted in found:
            a, b = simulated_pair(rng(trial), queries, seeds, planted)
            result = compare(a.ravel(), b.ravel(), rng(50_000 + trial), group, seed, replicates=300)
            found[planted] += result.p < 0.05
            covered += planted == 0.0 and result.low <= 0 <= result.high
    assert found[0.0] / trials <= 0.05 + 2.5 * (0.05 * 0.95 / trials) ** 0.5
    assert covered / trials >= 0.91
    assert found[0.01] / trials > power


def test_a_p_value_that_few_sign_patterns_decide_is_drawn_more_often_and_its_floor_is_said():
    generator = rng(7)
    clear = compare(0.5 + 0.1 * generator.random(300), np.zeros(300), rng())
    assert clear.at_floor
    assert clear.p < 1 / 2001
    weak = compare(generator.standard_normal(300), np.zeros(300), rng())
    assert not weak.at_floor
