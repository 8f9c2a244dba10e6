"""Values with intervals: means over queries and seeds, bootstrapped over both, and paired differences of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float

Key = TypeVar("Key")
REPLICATES = 10_000
# Weights kept in memory at most: very large test sets get fewer resamples, and need fewer.
_WEIGHTS = 40_000_000
LEVEL = 0.95


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
    """A paired difference with its 95 % interval, two-sided p, and p after Holm's correction in its family."""

    value: float
    low: float
    high: float
    p: float
    corrected: float

    @property
    def verdict(self) -> int:
        """1 or -1 if the sign is sure (interval and corrected p agree), else 0."""
        if self.corrected >= 1 - LEVEL or self.low <= 0 <= self.high:
            return 0
        return 1 if self.value > 0 else -1

    def scaled(self, factor: float) -> Difference:
        low, high = sorted((self.low * factor, self.high * factor))
        return Difference(self.value * factor, low, high, self.p, self.corrected)


@dataclass(frozen=True)
class Sums:
    """Sums of a score by seed and group, so that any resample is a weighted sum.

    `totals` and `counts` are [seeds, groups, columns] with one column a quantity (a direction, a modality); a group is the unit that is
    resampled. `groups` names the second axis.
    """

    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    totals: Float[np.ndarray, "s g c"]
    counts: Float[np.ndarray, "s g c"]

    def at(self, seeds: Sequence[int]) -> Sums:
        """The same for some of the seeds, in their order."""
        chosen = [self.seeds.index(seed) for seed in seeds]
        return Sums(tuple(seeds), self.groups, self.totals[chosen], self.counts[chosen])


class Resamples:
    """Bootstrap weights of one vocabulary of groups: all methods see the same resamples, so differences are paired.

    Groups of queries and seeds are drawn independently, with replacement; with one seed the interval covers the queries only.
    """

    def __init__(self, groups: Sequence[str], replicates: int | None = None, seed: int = 0) -> None:
        self.groups = tuple(groups)
        size = len(self.groups)
        self.replicates = replicates or int(np.clip(_WEIGHTS // max(size, 1), 1000, REPLICATES))
        self._seed = seed
        generator = np.random.default_rng([seed, 0])
        drawn = [
            np.bincount(generator.integers(size, size=size), minlength=size) if size else np.zeros(0)
            for _ in range(self.replicates)
        ]
        self._weights = np.array(drawn, dtype=np.float32)

    def means(self, sums: Sums) -> tuple[Float[np.ndarray, c], Float[np.ndarray, "b c"]]:
        """(the mean of every column, its resamples): seeds count alike, queries count alike within a seed."""
        assert sums.groups == self.groups
        seeds, groups, columns = sums.totals.shape
        counts = np.maximum(sums.counts.sum(axis=1), 1e-300)
        value = np.mean(sums.totals.sum(axis=1) / counts, axis=0)
        flat = (groups, seeds * columns)
        totals = self._weights @ sums.totals.transpose(1, 0, 2).reshape(flat).astype(np.float32)
        weights = self._weights @ sums.counts.transpose(1, 0, 2).reshape(flat).astype(np.float32)
        ratio = np.divide(totals, weights, out=np.full_like(totals, np.nan), where=weights > 0)
        ratio = ratio.reshape(self.replicates, seeds, columns).astype(np.float64)
        draws = self._seed_weights(sums.seeds)
        known = np.isfinite(ratio)
        weight = draws[:, :, None] * known
        replicates = (np.where(known, ratio, 0.0) * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-300)
        return value, np.where(weight.sum(axis=1) > 0, replicates, value)

    def _seed_weights(self, seeds: tuple[int, ...]) -> Float[np.ndarray, "b s"]:
        # Equal sets of seeds get equal draws: a method's seed 3 is compared with the other's seed 3, which hid the same modalities.
        generator = np.random.default_rng([self._seed, 1, len(seeds)])
        return generator.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=self.replicates).astype(np.float64)


def estimate(value: float, replicates: Float[np.ndarray, b]) -> Estimate:
    """`value` with the percentile interval of its resamples."""
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high))


def difference(value: float, replicates: Float[np.ndarray, b]) -> Difference:
    """A paired difference; p is twice the share of resamples on the other side of zero (uncorrected as yet)."""
    around = estimate(value, replicates)
    size = len(replicates)
    tail = min(int((replicates <= 0).sum()), int((replicates >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (size + 1))
    return Difference(around.value, around.low, around.high, p, p)


def holm(differences: Mapping[Key, Difference]) -> dict[Key, Difference]:
    """The same differences with p corrected for looking at all of them (Holm's step-down rule)."""
    ordered = sorted(differences, key=lambda name: differences[name].p)
    corrected: dict[Key, float] = {}
    running = 0.0
    for index, name in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - index) * differences[name].p))
        corrected[name] = running
    return {name: replace(found, corrected=corrected[name]) for name, found in differences.items()}
