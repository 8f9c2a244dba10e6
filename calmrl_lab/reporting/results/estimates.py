"""Values with intervals for whole tables at once: sums by seed and group, one set of resamples for all columns, paired differences."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from calmrl_lab.evaluation import significance
from calmrl_lab.evaluation.significance import LEVEL, REPLICATES

Key = TypeVar("Key", bound=Hashable)
# Resamples of a median, each of which is a pass over the rows.
_MEDIANS = 500


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Difference:
    """A paired difference with its 95 % interval, two-sided p, and p after Holm's correction in its family.

    `at_floor`: both p are the smallest that the resampling can give, so the true ones are at most these.
    """

    value: float
    low: float
    high: float
    p: float
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
        """1 or -1 if the sign is sure (interval and corrected p agree), else 0."""
        return 0 if self.corrected >= 1 - LEVEL else self.direction

    def scaled(self, factor: float) -> Difference:
        """The same in other units; `factor` is positive."""
        return replace(self, value=self.value * factor, low=self.low * factor, high=self.high * factor)


@dataclass(frozen=True)
class Sums:
    """Sums of scores by seed and group, so that any resample is a weighted sum.

    `totals` and `counts` are [seeds, groups, columns] with one column a quantity (a direction, a modality); a group is the unit that is
    resampled (near duplicates, captions of one clip).
    """

    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    totals: Float[np.ndarray, "s g c"]
    counts: Float[np.ndarray, "s g c"]

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


class Resamples:
    """The rule of `significance.interval` for many columns at once: groups and seeds drawn independently, with replacement.

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
        ratio = np.divide(totals, counts, out=np.zeros_like(totals), where=counts > 0).astype(np.float64)
        shape = (self.replicates, seeds, columns)
        weight = self._drawn_seeds(seeds)[:, :, None] * (counts > 0).reshape(shape)
        size = weight.sum(axis=1)
        replicates = (ratio.reshape(shape) * weight).sum(axis=1) / np.maximum(size, 1e-300)
        return value, np.where(size > 0, replicates, value)

    def median(
        self, values: Float[np.ndarray, " n"], group: Int[np.ndarray, " n"], seed: Int[np.ndarray, " n"], seeds: int
    ) -> Estimate:
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
        low, high = np.quantile(middles, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(value, min(float(low), value), max(float(high), value))

    def _drawn_seeds(self, size: int) -> Float[np.ndarray, "b s"]:
        generator = np.random.default_rng([self._seed, 1, size])
        return generator.multinomial(size, np.full(size, 1 / size), size=self.replicates).astype(np.float64)


def estimate(value: float, replicates: Float[np.ndarray, " b"], units: int | None = None) -> Estimate:
    """`value` with the percentile interval of its resamples; of a share (0 to 1) that rests on `units` groups, as in `share_limits`."""
    low, high = (float(limit) for limit in np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    if units:
        low, high = significance.share_limits(low, high, units)
    return Estimate(float(value), low, high)


def paired(a: Sums, a_columns: Sequence[int], b: Sums, b_columns: Sequence[int]) -> Difference | None:
    """Mean over `a_columns` of `a` minus that over `b_columns` of `b`, paired by group and seed; None without a common seed.

    p is not corrected yet: `corrected` equals it until `holm` has seen the family.
    """
    assert a.groups == b.groups
    seeds = tuple(seed for seed in a.seeds if seed in b.seeds)
    if not seeds or not len(a_columns) or not len(b_columns):
        return None
    first, second = a.at(seeds).shares(a_columns), b.at(seeds).shares(b_columns)
    groups = np.tile(np.arange(len(a.groups)), len(seeds))
    runs = np.repeat(np.arange(len(seeds)), len(a.groups))
    found = significance.compare(first.ravel(), second.ravel(), np.random.default_rng(0), groups, runs)
    return Difference(found.value, found.low, found.high, found.p, found.p, found.at_floor)


def holm(differences: Mapping[Key, Difference]) -> dict[Key, Difference]:
    """The same differences with p corrected for looking at all of them."""
    corrected = significance.holm({name: found.p for name, found in differences.items()})
    return {name: replace(found, corrected=corrected[name]) for name, found in differences.items()}
