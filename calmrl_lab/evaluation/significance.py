"""How sure a number is: bootstrap intervals over groups of queries and over seeds, paired tests, Holm's correction."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from calmrl_lab.errors import CalmrlError

Key = TypeVar("Key", bound=Hashable)
REPLICATES = 2000
LEVEL = 0.95
# Sign patterns drawn at once: 256 x 10,000 groups of float64 are 20 MB.
_AT_ONCE = 256
# A p-value that fewer sign patterns than this decide is drawn again, this many times as often.
_FEW, _MORE = 10, 10


@dataclass(frozen=True)
class Interval:
    """A mean and its interval at the level asked for, over `units` groups of queries and `seeds` seeds."""

    value: float
    low: float
    high: float
    units: int
    seeds: int


@dataclass(frozen=True)
class Comparison:
    """A paired difference a - b with its interval and two-sided p-value, over `units` groups of queries and `seeds` seeds.

    `at_floor`: p is the smallest that so many resamples can give, so the true one is at most that.
    """

    value: float
    low: float
    high: float
    p: float
    units: int
    seeds: int
    at_floor: bool = False

    def clear(self, level: float = LEVEL, corrected: float | None = None) -> bool:
        """Whether the difference may be called one: zero outside the interval, and p (or Holm's p, if given) below 1 - level."""
        return (self.low > 0 or self.high < 0) and (self.p if corrected is None else corrected) < 1 - level


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
    table = _Table.of(values, groups, seeds)
    value = table.mean(np.ones((1, table.units)), np.ones((1, table.runs)))[0]
    draws = table.resampled(generator, replicates)
    low, high = (float(limit) for limit in np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]))
    if top is not None:
        low, high = share_limits(low, high, table.units, top, level)
    return Interval(float(value), low, high, table.units, table.runs)


def share_limits(low: float, high: float, units: int, top: float = 1.0, level: float = LEVEL) -> tuple[float, float]:
    """Bootstrap limits of a share between 0 and `top`, widened where all of `units` groups are at one end.

    Resamples of nothing but failures (or hits) have no spread, which is no certainty: the limit is then the exact binomial one for that
    many draws (Clopper and Pearson, Biometrika 26, 1934), close to 3.7 / units for a level of 95 %.
    """
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
    table = _Table.of(a - b, groups, seeds)
    if table.runs > 1:
        return _random_seeds(table, level)
    value = table.mean(np.ones((1, table.units)), np.ones((1, 1)))[0]
    low, high = np.quantile(table.resampled(generator, replicates), [(1 - level) / 2, (1 + level) / 2])
    p, at_floor = _sign_flips(table, generator, replicates)
    return Comparison(float(value), float(low), float(high), p, table.units, 1, at_floor)


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


@dataclass(frozen=True)
class _Table:
    """Sums and counts a (seed, group) cell: every resample is a weighted sum of these."""

    totals: Float[np.ndarray, "s g"]
    counts: Float[np.ndarray, "s g"]

    @classmethod
    def of(cls, values: np.ndarray, groups: np.ndarray | None, seeds: np.ndarray | None) -> _Table:
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 1 or len(values) == 0:
            raise CalmrlError(f"an interval needs at least one value, got shape {list(values.shape)}")
        if not np.isfinite(values).all():
            raise CalmrlError(f"{int((~np.isfinite(values)).sum())} of {len(values)} values are NaN or infinite")
        unit, units = _codes(groups, len(values), "groups")
        run, runs = _codes(np.zeros(len(values)) if seeds is None else seeds, len(values), "seeds")
        cells = run * units + unit
        totals = np.bincount(cells, weights=values, minlength=runs * units).reshape(runs, units)
        counts = np.bincount(cells, minlength=runs * units).reshape(runs, units).astype(np.float64)
        return cls(totals, counts)

    @property
    def runs(self) -> int:
        return self.totals.shape[0]

    @property
    def units(self) -> int:
        return self.totals.shape[1]

    def mean(self, unit_weights: Float[np.ndarray, "b g"], run_weights: Float[np.ndarray, "b s"]) -> Float[np.ndarray, " b"]:
        """Weighted mean over seeds of the weighted mean over rows; seeds without rows in a resample are left out of it."""
        totals, counts = unit_weights @ self.totals.T, unit_weights @ self.counts.T
        weights = run_weights * (counts > 0)
        means = np.divide(totals, counts, out=np.zeros_like(totals), where=counts > 0)
        size = weights.sum(axis=1)
        mean = (means * weights).sum(axis=1) / np.maximum(size, 1e-300)
        return np.where(size > 0, mean, np.nan)

    def resampled(self, generator: np.random.Generator, replicates: int) -> Float[np.ndarray, " b"]:
        # Recall takes few values: groups that are alike in every seed are drawn as one kind, by how many of them come up.
        kinds, sizes = np.unique(np.concatenate([self.totals, self.counts]), axis=1, return_counts=True)
        alike = _Table(kinds[: self.runs], kinds[self.runs :])
        parts = []
        for start in range(0, replicates, _AT_ONCE):
            size = min(_AT_ONCE, replicates - start)
            units = generator.multinomial(self.units, sizes / self.units, size=size).astype(np.float64)
            runs = generator.multinomial(self.runs, np.full(self.runs, 1 / self.runs), size=size).astype(np.float64)
            parts.append(alike.mean(units, runs))
        draws = np.concatenate(parts)
        return draws[np.isfinite(draws)]


def _codes(labels: np.ndarray | None, n: int, what: str) -> tuple[np.ndarray, int]:
    if labels is None:
        return np.arange(n), n
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise CalmrlError(f"{what} must be one a value, got {labels.size} for {n} values")
    names, codes = np.unique(labels, return_inverse=True)
    return codes, len(names)


def _sign_flips(table: _Table, generator: np.random.Generator, replicates: int) -> tuple[float, bool]:
    """(share of sign patterns over groups whose difference is at least as large as the one seen, that one included; whether no other was)."""
    totals = table.totals[0]
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


def _random_seeds(table: _Table, level: float) -> Comparison:
    from scipy.stats import t as student

    weights = table.counts / np.maximum(table.counts.sum(axis=1, keepdims=True), 1e-300) / table.runs
    means = np.divide(table.totals, table.counts, out=np.zeros_like(table.totals), where=table.counts > 0)
    value = float((weights * means).sum())
    residual = weights * (means - value)
    s, g = table.runs, table.units
    by_seed = float((residual.sum(axis=1) ** 2).sum()) * s / (s - 1)
    by_group = float((residual.sum(axis=0) ** 2).sum()) * g / max(g - 1, 1)
    by_cell = float((residual**2).sum())
    # Both one-way variances contain that of single cells; a difference that is not positive is the noise of the estimate.
    variance = max(by_seed + by_group - by_cell, by_seed, by_group) if g > 1 else by_seed
    if variance <= 0:
        return Comparison(value, value, value, 1.0 if value == 0 else 0.0, g, s)
    freedom = variance**2 / (by_seed**2 / (s - 1) + (by_group**2 / (g - 1) if g > 1 else 0.0))
    error = variance**0.5
    half = float(student.ppf((1 + level) / 2, freedom)) * error
    p = float(2 * student.sf(abs(value) / error, freedom))
    return Comparison(value, value - half, value + half, p, g, s)
