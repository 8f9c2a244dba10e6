"""Classification of all runs -> accuracy by method, kind of classifier and modality, with intervals and the share of the largest class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from calmrl_lab.evaluation.significance import Interval, Resamples, Sums, estimate
from calmrl_lab.reporting.content.main_tables import span
from calmrl_lab.reporting.output.palette import Ink
from calmrl_lab.reporting.output.table import Cell, Column, Table
from calmrl_lab.reporting.results.collect import Gathered, Method

if TYPE_CHECKING:
    import pandas as pd

JOINT = "joint"
FIELDS = ("method", "kind", "modality", "gaps_filled", "accuracy", "low", "high", "accuracy_at_5", "macro", "seeds", "items")


@dataclass(frozen=True)
class Accuracy:
    """One method and classifier on one modality ("joint": all that an item shows). Shares in [0, 1]; `at_5` is None with few classes."""

    method: Method
    kind: str
    modality: str
    calibrated: bool
    top: Interval
    at_5: Interval | None
    macro: Interval
    items: int


@dataclass(frozen=True)
class Classifications:
    """All accuracies; `largest` is what always naming the most frequent class gets, `classes` how many there are."""

    rows: tuple[Accuracy, ...]
    largest: float
    classes: int


def classifications(gathered: Gathered) -> Classifications | None:
    """Accuracies of the methods whose runs were classified; None if none was."""
    import pandas as pd

    found = [(method, method.frame("classification")) for method in gathered.methods if method.frame("classification")]
    if not found:
        return None
    groups = sorted({str(g) for _, runs in found for _, frame in runs for g in frame["group"].unique()})
    resamples = Resamples(groups)
    rows = [row for method, runs in found for row in _accuracies(method, runs, resamples)]
    truth = pd.concat([frame.drop_duplicates("item")[["item", "label"]] for _, runs in found for _, frame in runs])
    counts = truth.drop_duplicates("item")["label"].value_counts()
    return Classifications(tuple(rows), float(counts.iloc[0] / counts.sum()), len(counts))


def _accuracies(method: Method, runs: Sequence[tuple[int, pd.DataFrame]], resamples: Resamples) -> list[Accuracy]:
    import pandas as pd

    every = pd.concat([frame.assign(seed=seed) for seed, frame in runs], ignore_index=True)
    if "calibrated" not in every.columns:
        every["calibrated"] = False
    top_5 = next((column for column in ("correct_at_5", "top5") if column in every.columns), None)
    group_at = {name: index for index, name in enumerate(resamples.groups)}
    seeds = {seed: index for index, (seed, _) in enumerate(runs)}
    rows = []
    for (kind, modality, calibrated), part in every.groupby(["kind", "modality", "calibrated"], sort=False, observed=True):
        where = part["seed"].map(seeds).to_numpy(), part["group"].astype(str).map(group_at).to_numpy()
        top = _sums(resamples, tuple(seeds), where, part["correct"].to_numpy(float))
        fifth = None if top_5 is None else part[top_5].to_numpy(float)
        rows.append(
            Accuracy(
                method=method,
                kind=str(kind),
                modality=str(modality),
                calibrated=bool(calibrated),
                top=_share(resamples, top),
                at_5=None
                if fifth is None or np.isnan(fifth).any()
                else _share(resamples, _sums(resamples, tuple(seeds), where, fifth)),
                macro=_macro(resamples, part, tuple(seeds), where),
                items=int(part["item"].nunique()),
            )
        )
    return rows


def _sums(
    resamples: Resamples,
    seeds: tuple[int, ...],
    where: tuple[np.ndarray, np.ndarray],
    values: Float[np.ndarray, " n"],
    column: Int[np.ndarray, " n"] | None = None,
) -> Sums:
    """Sums of `values` by seed and group (`where`), in one column or the one of every row."""
    place = np.zeros(len(values), dtype=np.int64) if column is None else column
    shape = (len(seeds), len(resamples.groups), int(place.max()) + 1)
    totals, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(totals, (*where, place), values)
    np.add.at(counts, (*where, place), 1.0)
    return Sums(seeds, resamples.groups, totals, counts)


def _share(resamples: Resamples, sums: Sums) -> Interval:
    value, replicates = resamples.means(sums)
    return estimate(value[0], replicates[:, 0], sums.units(0))


def _macro(resamples: Resamples, part: pd.DataFrame, seeds: tuple[int, ...], where: tuple[np.ndarray, np.ndarray]) -> Interval:
    """Mean over classes of the accuracy within a class: a rare class counts as much as a frequent one."""
    classes, place = np.unique(part["label"].astype(str), return_inverse=True)
    by_class = _sums(resamples, seeds, where, part["correct"].to_numpy(float), place)
    shares = by_class.shares(range(len(classes)))[:, :, None]
    whole = Sums(seeds, resamples.groups, shares, np.ones_like(shares))
    value, replicates = resamples.means(whole)
    return estimate(value[0], np.clip(replicates[:, 0], 0.0, 1.0))


def accuracy_table(found: Classifications, inks: dict[str, Ink]) -> Table:
    """A row per method, a column a classifier, on all that an item shows; a second row where gaps were filled."""
    shown = [row for row in found.rows if row.modality == JOINT] or list(found.rows)
    kinds = list(dict.fromkeys(row.kind for row in shown))
    rows = []
    for method in dict.fromkeys(row.method.name for row in shown):
        own = [row for row in shown if row.method.name == method]
        for calibrated in sorted({row.calibrated for row in own}):
            by_kind = {row.kind: row for row in own if row.calibrated == calibrated}
            label = f"{own[0].method.label}, gaps filled" if calibrated else own[0].method.label
            rows.append([Cell(label, swatch=f"var({inks[method].variable})"), *(_cell(by_kind.get(kind)) for kind in kinds)])
    columns = [Column("method", numeric=False), *(Column(f"{kind} %") for kind in kinds)]
    notes = (
        f"Share of items given the right one of {found.classes} classes, from all modalities that an item shows; brackets: 95 % interval, "
        "bootstrap over groups of items and over seeds.",
        f"Always naming the most frequent class gets {100 * found.largest:.1f} %.",
    )
    return Table("classification", "Classification accuracy", columns, rows, notes, FIELDS, _records(found))


def single_table(found: Classifications, inks: dict[str, Ink]) -> Table:
    """Every method, classifier and modality: top-1, top-5, mean over classes."""
    rows = [
        [
            Cell(row.method.label, swatch=f"var({inks[row.method.name].variable})"),
            Cell(row.kind),
            Cell(f"{row.modality}, gaps filled" if row.calibrated else row.modality),
            _cell(row),
            Cell("–") if row.at_5 is None else _estimate(row.at_5),
            _estimate(row.macro),
            Cell(str(row.items)),
        ]
        for row in found.rows
    ]
    heads = ("method", "classifier", "modality", "accuracy %", "among first 5 %", "mean over classes %", "items")
    columns = [Column(head, numeric=index > 2) for index, head in enumerate(heads)]
    return Table("classification_by_modality", "Accuracy by classifier and modality", columns, rows)


def _estimate(found: Interval) -> Cell:
    percent = found.scaled(100)
    return Cell(f"{percent.value:.1f}", span(percent), sort=round(percent.value, 6))


def _cell(row: Accuracy | None) -> Cell:
    if row is None:
        return Cell("–")
    top = row.top.scaled(100)
    title = f"mean over classes {100 * row.macro.value:.1f} %, {row.items} items"
    return Cell(f"{top.value:.1f}", span(top), sort=round(top.value, 6), title=title)


def _records(found: Classifications) -> list[dict[str, object]]:
    return [
        {
            "method": row.method.label, "kind": row.kind, "modality": row.modality, "gaps_filled": int(row.calibrated),
            "accuracy": 100 * row.top.value, "low": 100 * row.top.low, "high": 100 * row.top.high, "accuracy_at_5": float("nan") if row.at_5 is None else 100 * row.at_5.value,
            "macro": 100 * row.macro.value, "seeds": len(row.method.seeds), "items": row.items,
        }
        for row in found.rows
    ]  # fmt: skip
