"""Recall@1/5/10 and median rank of all runs by method and direction, with intervals and paired comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from calmrl_lab.evaluation.score_rows import DEPTHS, DIRECTION, chance, expected_ranks, hits, recall_table
from calmrl_lab.evaluation.significance import Comparison, Interval, Resamples, Sums, corrected_family, estimate, paired
from calmrl_lab.reporting.results.collect import Gathered, Method

if TYPE_CHECKING:
    import pandas as pd

Direction = tuple[str, str]


@dataclass(frozen=True)
class DirectionResult:
    """One method in one direction. Recalls in [0, 1]; `chance` are the recalls of a random order at the same depths."""

    direction: Direction
    recalls: dict[int, Interval]
    chance: dict[int, float]
    median_rank: Interval
    queries: int
    gallery: int


@dataclass(frozen=True)
class MethodResult:
    """One method over all directions that every method has; `means` are averages over these directions. `scored_by`: the similarity or scorer that its
    queries were ranked by."""

    method: Method
    directions: dict[Direction, DirectionResult]
    means: dict[int, Interval]
    chance: dict[int, float]
    scored_by: str = "cosine"

    @property
    def at_chance(self) -> bool:
        """True if Recall@10 over all directions cannot be told from that of a random order."""
        return self.means[10].low <= self.chance[10]


@dataclass(frozen=True)
class Recalls:
    """All methods with a run, and what is needed to compare any two of them.

    `directions` are those that every method has: means are over them. `columns` names the last axis of the sums: (direction, depth).
    """

    methods: tuple[MethodResult, ...]
    directions: tuple[Direction, ...]
    columns: tuple[tuple[Direction, int], ...]
    resamples: Resamples
    sums: dict[str, Sums]
    _known: dict[tuple[str, str, int, Direction | None], Comparison | None] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __getitem__(self, name: str) -> MethodResult:
        return next(found for found in self.methods if found.method.name == name)

    @property
    def all_directions(self) -> tuple[Direction, ...]:
        return tuple(dict.fromkeys(direction for direction, _ in self.columns))

    def compare(self, name: str, other: str, depth: int = 1, direction: Direction | None = None) -> Comparison | None:
        """`name` minus `other`, paired by query and seed; None if they share no seed. Mean over directions unless one is named."""
        wanted = self.directions if direction is None else (direction,)
        chosen = [index for index, (where, at) in enumerate(self.columns) if at == depth and where in wanted]
        key = (name, other, depth, direction)
        if key not in self._known:
            self._known[key] = paired(self.sums[name], chosen, self.sums[other], chosen)
        return self._known[key]

    def family(self, pairs: Sequence[tuple[str, str]], depth: int = 1) -> dict[tuple[str, str], Comparison]:
        """Comparisons of all `pairs`, p corrected for their number; pairs without a common seed are left out."""
        found = {pair: self.compare(*pair, depth=depth) for pair in dict.fromkeys(pairs)}
        return corrected_family({pair: one for pair, one in found.items() if one is not None})


def recalls(gathered: Gathered) -> Recalls:
    """Recalls of every method of `gathered`, over the full gallery and the first scorer of the runs."""
    methods = gathered.methods
    frames = {method.name: [(seed, plain(frame)) for seed, frame in method.frame("scores")] for method in methods}
    by_method = {name: [_directions(frame) for _, frame in runs] for name, runs in frames.items()}
    every = tuple(dict.fromkeys(d for found in by_method.values() for directions in found for d in directions))
    common = tuple(d for d in every if all(d in directions for found in by_method.values() for directions in found))
    groups = sorted({str(g) for runs in frames.values() for _, frame in runs for g in frame["group"].unique()})
    columns = tuple((direction, depth) for direction in every for depth in DEPTHS)
    resamples = Resamples(groups)
    sums = {name: _sums(runs, groups, every) for name, runs in frames.items()}
    results = [_result(method, frames[method.name], sums[method.name], resamples, columns, common) for method in methods]
    return Recalls(tuple(results), common, columns, resamples, sums)


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the main tables: nothing hidden from the gallery, the first scorer."""
    if "gallery_scenario" in frame.columns and (frame["gallery_scenario"] == "full").any():
        frame = frame[frame["gallery_scenario"] == "full"]
    if "scorer" in frame.columns:
        frame = frame[frame["scorer"] == frame["scorer"].iloc[0]]
    return frame


def _directions(frame: pd.DataFrame) -> list[Direction]:
    pairs = frame[["query", "gallery"]].drop_duplicates()
    return list(zip(pairs["query"].astype(str), pairs["gallery"].astype(str), strict=True))


def _sums(runs: Sequence[tuple[int, pd.DataFrame]], groups: Sequence[str], directions: Sequence[Direction]) -> Sums:
    place = {group: index for index, group in enumerate(groups)}
    order = {direction: index for index, direction in enumerate(directions)}
    shape = (len(runs), len(groups), len(directions), len(DEPTHS))
    totals, counts = np.zeros(shape), np.zeros(shape)
    for index, (_, frame) in enumerate(runs):
        group = frame["group"].astype(str).map(place).to_numpy()
        pairs = zip(frame["query"].astype(str), frame["gallery"].astype(str), strict=True)
        direction = np.fromiter((order[pair] for pair in pairs), dtype=np.int64, count=len(frame))
        for depth_index, depth in enumerate(DEPTHS):
            np.add.at(totals[index, :, :, depth_index], (group, direction), hits(frame, depth))
            np.add.at(counts[index, :, :, depth_index], (group, direction), 1.0)
    flat = (shape[0], shape[1], -1)
    return Sums(tuple(seed for seed, _ in runs), tuple(groups), totals.reshape(flat), counts.reshape(flat))


def _result(
    method: Method,
    runs: Sequence[tuple[int, pd.DataFrame]],
    sums: Sums,
    resamples: Resamples,
    columns: Sequence[tuple[Direction, int]],
    common: Sequence[Direction],
) -> MethodResult:
    import pandas as pd

    value, replicates = resamples.means(sums)
    rows = pd.concat([frame.assign(seed=place) for place, (_, frame) in enumerate(runs)], ignore_index=True)
    groups = {name: place for place, name in enumerate(sums.groups)}
    table = recall_table(rows).set_index(list(DIRECTION))
    directions: dict[Direction, DirectionResult] = {}
    for key, part in rows.groupby(list(DIRECTION), sort=False, observed=True):
        direction, row = (str(key[0]), str(key[1])), table.loc[key]
        directions[direction] = DirectionResult(
            direction=direction,
            recalls={k: Interval(*(row[f"{name}_{k}"] / 100 for name in ("recall_at", "low", "high"))) for k in DEPTHS},
            chance={depth: float(chance(part, depth).mean()) for depth in DEPTHS},
            median_rank=resamples.median(
                expected_ranks(part), part["group"].astype(str).map(groups).to_numpy(), part["seed"].to_numpy(), len(runs)
            ),
            queries=round(len(part) / len(runs)),
            gallery=int(part["candidates"].max()),
        )
    chosen = {depth: [i for i, (d, at) in enumerate(columns) if at == depth and d in common] for depth in DEPTHS}
    means = {depth: estimate(value[at].mean(), replicates[:, at].mean(axis=1)) for depth, at in chosen.items() if at}
    by_chance = {depth: float(np.mean([directions[d].chance[depth] for d in common])) for depth in DEPTHS if common}
    scored_by = str(rows["scorer"].iloc[0]) if "scorer" in rows.columns and len(rows) else "cosine"
    return MethodResult(method, directions, means, by_chance, scored_by)
