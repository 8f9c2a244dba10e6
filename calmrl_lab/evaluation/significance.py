"""Uncertainty of results: bootstrap intervals over groups of queries and over seeds, paired tests, Holm's correction.

`interval` and `compare` take values with a label for each; `Resamples` and `paired` take `Sums` of many columns at once, for whole tables. Both
follow the same rules.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from calmrl_lab.errors import CalmrlError

Key = TypeVar("Key", bound=Hashable)
REPLICATES = 2000
LEVEL = 0.95
# Resamples of a median, each of which is a pass over the rows.
_MEDIANS = 500
# Sign patterns drawn at once: 256 x 10,000 groups of float64 are 20 MB.
_AT_ONCE = 256
# A p-value that fewer sign patterns than this decide is drawn again, this many times as often.
_FEW, _MORE = 10, 10


@dataclass(frozen=True)
class Interval:
    """A mean and its interval at the given level; `units` groups of queries and `seeds` seeds, where they were counted."""

    value: float
    low: float
    high: float
    units: int | None = None
    seeds: int | None = None

    def scaled(self, factor: float) -> Interval:
        """The same in other units; `factor` is positive."""
        return replace(self, value=self.value * factor, low=self.low * factor, high=self.high * factor)


@dataclass(frozen=True)
class Comparison:
    """A paired difference a - b with its interval and two-sided p-value, over `units` groups of queries and `seeds` seeds.

    `corrected` is p after Holm's correction where the difference is one of several (`corrected_family`), else p. `at_floor`: p is the smallest
    that so many resamples can give, so the true one is at most that.
    """

    value: float
    low: float
    high: float
    p: float
    units: int
    seeds: int
    corrected: float
    at_floor: bool = False

    @property
    def direction(self) -> int:
        """1 or -1 if the interval leaves out zero, else 0; p after correction may still be large, see `verdict`."""
        if self.low <= 0 <= self.high:
            return 0
        return 1 if self.value > 0 else -1

    @property
    def verdict(self) -> int:
        """1 or -1 if the sign is sure (interval and corrected p agree at 95 %), else 0."""
        return 0 if self.corrected >= 1 - LEVEL else self.direction

    def scaled(self, factor: float) -> Comparison:
        """The same in other units; `factor` is positive."""
        return replace(self, value=self.value * factor, low=self.low * factor, high=self.high * factor)


@dataclass(frozen=True)
class Sums:
    """Sums of scores by seed and group, so that any resample is a weighted sum.

    `totals` and `counts` are [seeds, groups, columns] with one column per quantity (a direction, a modality); a group is the unit that is
    resampled (near duplicates, captions of one clip).
    """

    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    totals: Float[np.ndarray, "s g c"]
    counts: Float[np.ndarray, "s g c"]

    @classmethod
    def of(cls, values: Float[np.ndarray, " n"], groups: np.ndarray | None, seeds: np.ndarray | None) -> Sums:
        """One column: `values` by the labels `groups` [n] (None: a group each) and `seeds` [n] (None: one seed).

        Raises CalmrlError for no values, NaN, or arrays of different length.
        """
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 1 or len(values) == 0:
            raise CalmrlError(f"an interval needs at least one value, got shape {list(values.shape)}")
        if not np.isfinite(values).all():
            raise CalmrlError(f"{int((~np.isfinite(values)).sum())} of {len(values)} values are NaN or infinite")
        unit, units = _codes(groups, len(values), "groups")
        run, runs = _codes(np.zeros(len(values)) if seeds is None else seeds, len(values), "seeds")
        cells, shape = run * units + unit, (runs, units, 1)
        totals = np.bincount(cells, weights=values, minlength=runs * units).reshape(shape)
        counts = np.bincount(cells, minlength=runs * units).reshape(shape).astype(np.float64)
        return cls(tuple(range(runs)), tuple(map(str, range(units))), totals, counts)

    def at(self, seeds: Sequence[int]) -> Sums:
        """The same for some of the seeds, in their order."""
        chosen = [self.seeds.index(seed) for seed in seeds]
        return Sums(tuple(seeds), self.groups, self.totals[chosen], self.counts[chosen])

    def units(self, column: int) -> int:
        """How many groups have rows in a column."""
        return int(np.count_nonzero(self.counts[:, :, column].sum(axis=0)))

    def means(self) -> Float[np.ndarray, "s c"]:
        """The mean of every column in every seed."""
        return self.totals.sum(axis=1) / np.maximum(self.counts.sum(axis=1), 1e-300)

    def shares(self, columns: Sequence[int]) -> Float[np.ndarray, "s g"]:
        """What every group adds to the mean over `columns`, scaled so that the mean over groups is that mean.

        A column's mean is a ratio of sums; this is its linearisation, in which rare columns (directions with few queries) weigh as much
        as the others although they have fewer rows.
        """
        chosen = list(columns)
        totals, counts, means = self.totals[:, :, chosen], self.counts[:, :, chosen], self.means()[:, chosen]
        size = np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
        influence = ((totals - means[:, None] * counts) / size).mean(axis=2)
        return influence * len(self.groups) + means.mean(axis=1, keepdims=True)


def interval(
    values: Float[np.ndarray, " n"],
    generator: np.random.Generator,
    groups: np.ndarray | None = None,
    seeds: np.ndarray | None = None,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    top: float | None = None,
) -> Interval:
    """Mean of `values` with a percentile bootstrap interval.

    `groups` [n]: rows of one group (near duplicates, captions of one clip) are drawn together; default: every row alone.
    `seeds` [n]: the run each row comes from; seeds are drawn too, independently of groups, so that the interval covers another seed
    as well as other queries (Owen, Annals of Applied Statistics 1, 2007; slightly too wide rather than too narrow). The mean
    of a seed's rows is averaged over seeds.
    `top`: the values are shares between 0 and `top` (100 for percent); see `share_limits`.
    Raises CalmrlError for no values, NaN, or arrays of different length.
    """
    sums = Sums.of(values, groups, seeds)
    units = len(sums.groups)
    low, high = _limits(_resampled(sums, generator, replicates), level)
    if top is not None:
        low, high = share_limits(low, high, units, top, level)
    return Interval(float(sums.means().mean()), low, high, units, len(sums.seeds))


def share_limits(low: float, high: float, units: int, top: float = 1.0, level: float = LEVEL) -> tuple[float, float]:
    """Bootstrap limits of a share between 0 and `top`, widened where all of `units` groups are at one end.

    Resamples of nothing but failures (or hits) have no spread, which is no certainty: the limit is then the exact binomial one for that
    many draws (Clopper and Pearson, Biometrika 26, 1934), close to 3.7 / units for a level of 95 %. Resamples of a linearised ratio
    (`Sums.shares`) may leave the range a little: the limits do not.
    """
    low, high = max(low, 0.0), min(high, top)
    least = ((1 - level) / 2) ** (1 / units)
    if high <= 0:
        return low, top * (1 - least)
    return (top * least, high) if low >= top else (low, high)


def compare(
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " n"],
    generator: np.random.Generator,
    groups: np.ndarray | None = None,
    seeds: np.ndarray | None = None,
    replicates: int = REPLICATES,
    level: float = LEVEL,
) -> Comparison:
    """Paired comparison of `a` and `b` [n]: the same queries (and the same seeds) in the same order.

    With one seed: interval by bootstrap over groups, p by flipping the signs of whole groups (exact if neither is better and
    differences are symmetric). With several, seeds are a random effect: variance of the mean by two-way clustering over groups and
    seeds (Cameron, Gelbach and Miller, JBES 29, 2011), Student's t with Satterthwaite's degrees of freedom, so that few seeds make wide
    intervals. No difference at all gives p = 1. Raises CalmrlError for arrays that cannot be paired, no values, or NaN.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise CalmrlError(
            f"a paired comparison needs the same queries on both sides, got {a.size} and {b.size}",
            hint="score both runs on the same store, split and directions",
        )
    sums = Sums.of(a - b, groups, seeds)
    if len(sums.seeds) > 1:
        return _random_seeds(sums, level)
    low, high = _limits(_resampled(sums, generator, replicates), level)
    p, at_floor = _sign_flips(sums, generator, replicates)
    return Comparison(float(sums.means().mean()), low, high, p, len(sums.groups), 1, p, at_floor)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """p-values corrected for having looked at all of them (Holm, Scandinavian Journal of Statistics 6, 1979).

    Raises CalmrlError for a value outside 0..1.
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise CalmrlError(f"p-value of {name} is {p}, expected a number between 0 and 1")
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted = np.minimum(1.0, np.arange(len(ordered), 0, -1) * np.array([p_values[name] for name in ordered]))
    corrected = dict(zip(ordered, np.maximum.accumulate(adjusted).tolist(), strict=True)) if ordered else {}
    return {name: corrected[name] for name in p_values}


def corrected_family(comparisons: Mapping[Key, Comparison]) -> dict[Key, Comparison]:
    """The same comparisons with p corrected for looking at all of them (`holm`)."""
    corrected = holm({name: found.p for name, found in comparisons.items()})
    return {name: replace(found, corrected=corrected[name]) for name, found in comparisons.items()}


class Resamples:
    """The rule of `interval` for many columns at once: groups and seeds drawn independently, with replacement.

    One drawing serves every column of a table; a column at a time would draw anew for each cell. With one seed the interval covers
    the queries only.
    """

    def __init__(self, groups: Sequence[str], replicates: int = REPLICATES, seed: int = 0) -> None:
        self.groups = tuple(groups)
        self.replicates = replicates
        self._seed = seed
        generator, size = np.random.default_rng([seed, 0]), len(self.groups)
        drawn = [np.bincount(generator.integers(size, size=size), minlength=size) for _ in range(replicates if size else 0)]
        self._weights = np.array(drawn, dtype=np.float32).reshape(len(drawn), size)

    def means(self, sums: Sums) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, "b c"]]:
        """(the mean of every column, its resamples): seeds count alike, queries count alike within a seed."""
        assert sums.groups == self.groups
        seeds, groups, columns = sums.totals.shape
        value = sums.means().mean(axis=0)
        flat = (groups, seeds * columns)
        totals = self._weights @ sums.totals.transpose(1, 0, 2).reshape(flat).astype(np.float32)
        counts = self._weights @ sums.counts.transpose(1, 0, 2).reshape(flat).astype(np.float32)
        shape = (self.replicates, seeds, columns)
        replicates = _means(totals.reshape(shape), counts.reshape(shape), self._drawn_seeds(seeds))
        return value, np.where(np.isfinite(replicates), replicates, value)

    def median(
        self, values: Float[np.ndarray, " n"], group: Int[np.ndarray, " n"], seed: Int[np.ndarray, " n"], seeds: int
    ) -> Interval:
        """Median of rows by group and seed (positions in `groups` and below `seeds`), groups and seeds drawn as in `means`."""
        order = np.argsort(values, kind="stable")
        ordered, group, seed = values[order], group[order], seed[order]
        drawn = self._drawn_seeds(seeds)
        middles = []
        for weights, chosen in zip(self._weights[:_MEDIANS], drawn, strict=False):
            running = np.cumsum(weights[group] * chosen[seed])
            if running[-1] > 0:
                middles.append(ordered[np.searchsorted(running, running[-1] / 2)])
        value = float(np.median(values))
        low, high = _limits(np.asarray(middles))
        return Interval(value, min(low, value), max(high, value))

    def _drawn_seeds(self, size: int) -> Float[np.ndarray, "b s"]:
        generator = np.random.default_rng([self._seed, 1, size])
        return generator.multinomial(size, np.full(size, 1 / size), size=self.replicates).astype(np.float64)


def estimate(value: float, replicates: Float[np.ndarray, " b"], units: int | None = None) -> Interval:
    """`value` with the percentile interval of its resamples; of a share (0 to 1) that rests on `units` groups, as in `share_limits`."""
    low, high = _limits(replicates)
    if units:
        low, high = share_limits(low, high, units)
    return Interval(float(value), low, high, units)


def paired(a: Sums, a_columns: Sequence[int], b: Sums, b_columns: Sequence[int]) -> Comparison | None:
    """Mean over `a_columns` of `a` minus that over `b_columns` of `b`, paired by group and seed; None without a common seed.

    p is not corrected yet (`corrected_family` does that).
    """
    assert a.groups == b.groups
    seeds = tuple(seed for seed in a.seeds if seed in b.seeds)
    if not seeds or not len(a_columns) or not len(b_columns):
        return None
    first, second = a.at(seeds).shares(a_columns), b.at(seeds).shares(b_columns)
    groups = np.tile(np.arange(len(a.groups)), len(seeds))
    runs = np.repeat(np.arange(len(seeds)), len(a.groups))
    return compare(first.ravel(), second.ravel(), np.random.default_rng(0), groups, runs)


def _limits(draws: Float[np.ndarray, " b"], level: float = LEVEL) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _means(
    totals: Float[np.ndarray, "b s c"], counts: Float[np.ndarray, "b s c"], seed_weights: Float[np.ndarray, "b s"]
) -> Float[np.ndarray, "b c"]:
    """Weighted mean over seeds of the mean over rows; seeds without rows in a resample are left out, NaN if none has any."""
    weights = seed_weights[:, :, None] * (counts > 0)
    means = np.divide(totals, counts, out=np.zeros_like(totals), where=counts > 0).astype(np.float64)
    size = weights.sum(axis=1)
    return np.where(size > 0, (means * weights).sum(axis=1) / np.maximum(size, 1e-300), np.nan)


def _resampled(sums: Sums, generator: np.random.Generator, replicates: int) -> Float[np.ndarray, " b"]:
    """Means of sums of one column over groups and seeds drawn with replacement."""
    runs, groups, _ = sums.totals.shape
    # Recall takes few values: groups that are alike in every seed are drawn as one kind, by how many of them come up.
    kinds, sizes = np.unique(np.concatenate([sums.totals[:, :, 0], sums.counts[:, :, 0]]), axis=1, return_counts=True)
    parts = []
    for start in range(0, replicates, _AT_ONCE):
        size = min(_AT_ONCE, replicates - start)
        drawn = generator.multinomial(groups, sizes / groups, size=size).astype(np.float64)
        seeds = generator.multinomial(runs, np.full(runs, 1 / runs), size=size).astype(np.float64)
        by_seed = drawn @ kinds.T
        parts.append(_means(by_seed[:, :runs, None], by_seed[:, runs:, None], seeds)[:, 0])
    draws = np.concatenate(parts)
    return draws[np.isfinite(draws)]


def _codes(labels: np.ndarray | None, n: int, what: str) -> tuple[np.ndarray, int]:
    if labels is None:
        return np.arange(n), n
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise CalmrlError(f"{what} must be one per value, got {labels.size} for {n} values")
    names, codes = np.unique(labels, return_inverse=True)
    return codes, len(names)


def _sign_flips(sums: Sums, generator: np.random.Generator, replicates: int) -> tuple[float, bool]:
    """(share of sign patterns over groups whose difference is at least as large as the one seen, that one included; whether no other was)."""
    totals = sums.totals[0, :, 0]
    seen = abs(totals.sum())
    # Groups without any difference do not change under a flip; of n groups of one size, Binomial(n, 1/2) stay positive.
    amounts, sizes = np.unique(np.abs(totals[totals != 0]), return_counts=True)
    slack = 1e-12 * (amounts * sizes).sum()

    def reached(draws: int) -> int:
        count = 0
        for start in range(0, draws, _AT_ONCE):
            positive = generator.binomial(sizes, 0.5, size=(min(_AT_ONCE, draws - start), len(sizes)))
            count += int((np.abs((2.0 * positive - sizes) @ amounts) >= seen - slack).sum())
        return count

    drawn, as_large = replicates, reached(replicates)
    if as_large < _FEW:
        drawn, as_large = _MORE * replicates, as_large + reached((_MORE - 1) * replicates)
    return (as_large + 1) / (drawn + 1), as_large == 0


def _random_seeds(sums: Sums, level: float) -> Comparison:
    from scipy.stats import t as student

    totals, counts = sums.totals[:, :, 0], sums.counts[:, :, 0]
    s, g = totals.shape
    weights = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300) / s
    means = np.divide(totals, counts, out=np.zeros_like(totals), where=counts > 0)
    value = float((weights * means).sum())
    residual = weights * (means - value)
    by_seed = float((residual.sum(axis=1) ** 2).sum()) * s / (s - 1)
    by_group = float((residual.sum(axis=0) ** 2).sum()) * g / max(g - 1, 1)
    by_cell = float((residual**2).sum())
    # Both one-way variances contain that of single cells; a difference that is not positive is the noise of the estimate.
    variance = max(by_seed + by_group - by_cell, by_seed, by_group) if g > 1 else by_seed
    if variance <= 0:
        p = 1.0 if value == 0 else 0.0
        return Comparison(value, value, value, p, g, s, p)
    freedom = variance**2 / (by_seed**2 / (s - 1) + (by_group**2 / (g - 1) if g > 1 else 0.0))
    error = variance**0.5
    half = float(student.ppf((1 + level) / 2, freedom)) * error
    p = float(2 * student.sf(abs(value) / error, freedom))
    return Comparison(value, value - half, value + half, p, g, s, p)
