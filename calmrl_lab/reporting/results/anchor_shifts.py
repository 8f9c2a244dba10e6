"""Anchor shifts of calibrated runs: means by pattern with and without calibration, the proven bounds, the share of items harmed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from calmrl_lab.evaluation.significance import Comparison, Interval, Resamples, Sums, estimate, paired
from calmrl_lab.reporting.results.collect import Gathered, Method

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
# Two lines cannot be farther apart than orthogonal ones: ||u - v|| = sqrt(2).
LARGEST = float(np.sqrt(2.0))
_SUMMED = ("shift_observed", "shift_calibrated", "closer")


@dataclass(frozen=True)
class PatternShift:
    """Mean shift of the items that show only `pattern`; `change` is calibrated minus observed, paired by item and seed; `improved` the share of
    cases that calibration brought closer."""

    pattern: str
    observed: Interval
    calibrated: Interval
    change: Comparison
    lower: float
    upper: float
    improved: Interval
    items: int


@dataclass(frozen=True)
class Shifts:
    """Anchor shifts on the embeddings of `method`; `patterns` starts with all of them together.

    `changes` are shifts with calibration minus shifts without, one per case (an item, what it shows, a seed), in ascending order.
    """

    method: Method
    split: str
    patterns: tuple[PatternShift, ...]
    changes: Float[np.ndarray, " cases"]
    broken: int

    @property
    def harmed(self) -> float:
        """Share of the cases that calibration took farther away."""
        return float((self.changes > 0).mean())

    @property
    def unchanged(self) -> int:
        """Cases whose shift is the same with calibration, as where risk control leaves an item uncalibrated."""
        return int((self.changes == 0).sum())

    @property
    def overall(self) -> PatternShift:
        return self.patterns[0]


def shifts(gathered: Gathered) -> Shifts | None:
    """Shifts of the first calibrated method that has any (else of any method); None if no run has any.

    Bounds are clipped to [0, sqrt 2]. `broken` counts shifts outside their proven bounds by more than rounding: always 0 unless
    something is wrong with the numbers.
    """
    import pandas as pd

    candidates = sorted(gathered.methods, key=lambda found: found.role != "calibrated")
    chosen = next((found for found in candidates if found.frame("anchors")), None)
    if chosen is None:
        return None
    runs = chosen.frame("anchors")
    every = pd.concat([frame.assign(seed=seed) for seed, frame in runs], ignore_index=True)
    splits = list(every["split"].unique())
    split = gathered.split if gathered.split in splits else (splits[-1] if splits else gathered.split)
    every = every[(every["split"] == split) & every["shift_observed"].notna() & every["shift_calibrated"].notna()]
    if every.empty:
        return None
    every = every.assign(
        lower=every["lower"].fillna(0.0).clip(0.0, LARGEST), upper=every["upper"].fillna(LARGEST).clip(0.0, LARGEST)
    )
    outside = (every["shift_observed"] < every["lower"] - 1e-6) | (every["shift_observed"] > every["upper"] + 1e-6)
    seeds = [seed for seed, _ in runs]
    changes = np.sort((every["shift_calibrated"] - every["shift_observed"]).to_numpy(float))
    return Shifts(chosen, str(split), tuple(_patterns(every, seeds)), changes, int(outside.sum()))


def _patterns(every: pd.DataFrame, seeds: Sequence[int]) -> list[PatternShift]:
    names = sorted(every["pattern"].astype(str).unique(), key=lambda name: (name.count("+"), name))
    keys = [ALL, *names]
    groups = sorted(every["group"].astype(str).unique())
    sums = _sums(every, groups, [seed for seed in seeds if (every["seed"] == seed).any()], keys)
    value, replicates = Resamples(groups).means(sums)
    found = []
    for index, key in enumerate(keys):
        part = every if key == ALL else every[every["pattern"] == key]
        at, then, closer = (len(_SUMMED) * index + place for place in range(len(_SUMMED)))
        change = paired(sums, [then], sums, [at])
        assert change is not None
        found.append(
            PatternShift(
                pattern=key,
                observed=estimate(value[at], replicates[:, at]),
                calibrated=estimate(value[then], replicates[:, then]),
                change=change,
                lower=float(part["lower"].mean()),
                upper=float(part["upper"].mean()),
                improved=estimate(value[closer], replicates[:, closer], sums.units(closer)),
                items=int(part["item"].nunique()),
            )
        )
    return found


def _sums(every: pd.DataFrame, groups: Sequence[str], seeds: Sequence[int], keys: Sequence[str]) -> Sums:
    group_at = {name: index for index, name in enumerate(groups)}
    seed_at = {seed: index for index, seed in enumerate(seeds)}
    key_at = {key: index for index, key in enumerate(keys)}
    width = len(_SUMMED)
    shape = (len(seeds), len(groups), width * len(keys))
    totals, counts = np.zeros(shape), np.zeros(shape)
    closer = (every["shift_calibrated"] < every["shift_observed"]).astype(float)
    rows = every.assign(closer=closer).groupby(["seed", "group", "pattern"], observed=True)
    summed = rows[list(_SUMMED)].agg(["sum", "count"])
    for (seed, group, pattern), row in zip(summed.index, summed.to_numpy(), strict=True):
        for key in (str(pattern), ALL):
            place = slice(width * key_at[key], width * (key_at[key] + 1))
            totals[seed_at[seed], group_at[str(group)], place] += row[0::2]
            counts[seed_at[seed], group_at[str(group)], place] += row[1::2]
    return Sums(tuple(seeds), tuple(groups), totals, counts)
