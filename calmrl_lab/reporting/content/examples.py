"""Error analysis: items whose anchor calibration moved away from the true one, gaps imputed worse than by the mean, queries won and lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from calmrl_lab.evaluation.score_rows import expected_ranks
from calmrl_lab.reporting.content.main_tables import signed
from calmrl_lab.reporting.content.nearest_items import Items
from calmrl_lab.reporting.output.table import Cell, Column, Table
from calmrl_lab.reporting.results.collect import Gathered, Method, RunRecord
from calmrl_lab.reporting.results.recalls import Direction, Recalls, plain

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 10


@dataclass(frozen=True)
class Case:
    """A query item, and its expected rank with calibration and without."""

    item: str
    rank: float
    other_rank: float


@dataclass(frozen=True)
class Cases:
    """Queries of one direction, sorted by who found them first; a few of every kind drawn at random, with how many there are.

    `run` is the calibrated run, `other` the same seed of the method it is compared with.
    """

    direction: Direction
    run: RunRecord
    other: RunRecord
    labels: tuple[str, str]
    kinds: tuple[tuple[str, int, tuple[Case, ...]], ...]
    queries: int


def cases(
    gathered: Gathered, recalls: Recalls, method: Method | None, other: Method | None, each: int = 3, seed: int = 0
) -> Cases | None:
    """Queries won, lost and missed by `method` against `other` in the direction with most queries (caption to vision, else the first).

    Drawn at random with `seed`, not picked: a reader must be able to trust that they are typical. None without a common seed.
    """
    if method is None or other is None or not recalls.directions:
        return None
    both = [seed for seed in method.seeds if seed in other.seeds]
    if not both:
        return None
    direction = ("caption", "vision") if ("caption", "vision") in recalls.directions else recalls.directions[0]
    run, second = (next(run for run in m.runs if run.seed == both[0]) for m in (method, other))
    ranks = _ranks(run, direction).to_frame("rank").join(_ranks(second, direction).to_frame("other_rank"), how="inner")
    mine, theirs = ranks["rank"] == 1, ranks["other_rank"] == 1
    far = (ranks["rank"] > 10) & (ranks["other_rank"] > 10)
    generator = np.random.default_rng(seed)
    kinds = []
    for kind, chosen in (("won", mine & ~theirs), ("lost", ~mine & theirs), ("far off for both", far)):
        found = ranks[chosen]
        drawn = np.sort(generator.permutation(len(found))[:each])
        picked = tuple(Case(str(item), float(a), float(b)) for item, a, b in found.iloc[drawn].itertuples())
        kinds.append((kind, len(found), picked))
    return Cases(direction, run, second, (method.label, other.label), tuple(kinds), len(ranks))


def _ranks(run: RunRecord, direction: Direction) -> pd.Series:
    """Expected rank by item (the best of several rows of one item)."""
    frame = plain(run.scores)
    frame = frame[(frame["query"] == direction[0]) & (frame["gallery"] == direction[1])]
    rank = frame.assign(rank=expected_ranks(frame))["rank"]
    return rank.groupby(frame["item"].astype(str)).min().sort_index()


def worst_shifts(method: Method, split: str, items: Items) -> Table | None:
    """The items whose anchor calibration took farthest away, averaged over seeds; None if it took none away."""
    import pandas as pd

    frames = [frame[frame["split"] == split] for _, frame in method.frame("anchors")]
    if not frames:
        return None
    every = pd.concat(frames, ignore_index=True)
    means = every.groupby(["item", "pattern"], observed=True)[["shift_observed", "shift_calibrated"]].mean().reset_index()
    means["change"] = means["shift_calibrated"] - means["shift_observed"]
    harmed = means[means["change"] > 0]
    if harmed.empty:
        return None
    worst = harmed.sort_values(["change", "item", "pattern"], ascending=[False, True, True]).head(_SHOWN)
    rows = [
        [
            _item(str(row.item), items),
            Cell(str(row.pattern)),
            Cell(f"{row.shift_observed:.3f}"),
            Cell(f"{row.shift_calibrated:.3f}"),
            Cell(signed(float(row.change), 3), sort=round(float(row.change), 6)),
        ]
        for row in worst.itertuples()
    ]
    heads = ("item", "observed", "shift without", "shift with", "change")
    columns = [Column(head, numeric=index > 1) for index, head in enumerate(heads)]
    notes = (
        f"Means over the seeds; {len(harmed)} of {len(means)} pairs of item and pattern ({100 * len(harmed) / len(means):.0f} %) were moved "
        f"farther away. {method.label}, {split} split.",
    )
    fields = ("item", "pattern", "shift_observed", "shift_calibrated", "change")
    records = worst[list(fields)].to_dict("records")
    return Table("worst_shifts", "Anchors that calibration moved farthest away", columns, rows, notes, fields, records)


def harmed_fillings(method: Method, split: str, items: Items) -> Table | None:
    """The gaps that the imputer of `method` filled worst compared with the mean, averaged over seeds; None without both."""
    import pandas as pd

    own = method.imputer
    frames = [frame[frame["split"] == split] for _, frame in method.frame("imputation")]
    if not frames or own == "mean":
        return None
    every = pd.concat(frames, ignore_index=True)
    every = every[every["imputer"].isin([own, "mean"])]
    wide = every.pivot_table(index=["item", "modality", "pattern"], columns="imputer", values="squared_error", observed=True)
    if own not in wide.columns or "mean" not in wide.columns:
        return None
    wide = wide.dropna().reset_index()
    wide["change"] = wide[own] - wide["mean"]
    harmed = wide[wide["change"] > 0]
    if harmed.empty:
        return None
    worst = harmed.sort_values(["change", "item", "modality", "pattern"], ascending=[False, True, True, True]).head(_SHOWN)
    rows = [
        [
            _item(str(row["item"]), items),
            Cell(str(row["modality"])),
            Cell(str(row["pattern"])),
            Cell(f"{row[own]:.3f}"),
            Cell(f"{row['mean']:.3f}"),
            Cell(signed(float(row["change"]), 3), sort=round(float(row["change"]), 6)),
        ]
        for _, row in worst.iterrows()
    ]
    heads = ("item", "hidden", "observed", f"error of {own}", "error of the mean", "change")
    columns = [Column(head, numeric=index > 2) for index, head in enumerate(heads)]
    shares = wide.assign(worse=wide["change"] > 0).groupby("modality", observed=True)["worse"].mean()
    by_modality = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    notes = (
        f"Means over the seeds; {len(harmed)} of {len(wide)} gaps ({100 * len(harmed) / len(wide):.0f} %) were imputed worse than by the "
        f"mean: {by_modality}. {method.label}, {split} split.",
    )
    fields = ("item", "modality", "pattern", "error", "error_of_mean", "change")
    records = worst.rename(columns={own: "error", "mean": "error_of_mean"})[list(fields)].to_dict("records")
    return Table("harmed_fillings", f"Gaps that {own} imputed worse than the mean", columns, rows, notes, fields, records)


def _item(item: str, items: Items) -> Cell:
    """An item by its picture and name where the store has them, else by its id."""
    name = items.name(item)
    return Cell(name, sort=name, title=item if name != item else "", picture=items.picture(item))
