"""Classification against the fair baseline: paired differences of accuracy, from all that an item shows, with nothing imputed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from calmrl_lab.evaluation.significance import Comparison, Sums, corrected_family, paired
from calmrl_lab.reporting.content.main_tables import probability, signed, span
from calmrl_lab.reporting.output.palette import Ink
from calmrl_lab.reporting.output.table import Cell, Column, Table
from calmrl_lab.reporting.results.collect import Gathered, Method
from calmrl_lab.reporting.results.comparisons import Roles
from calmrl_lab.runtime.console import listed

if TYPE_CHECKING:
    import pandas as pd

FIELDS = ("method", "reference", "kind", "difference", "low", "high", "p_corrected")
_JOINT = "joint"


@dataclass(frozen=True)
class ClassDifferences:
    """Accuracy (fraction) of a method minus that of `fair`, by (method name, classifier); p corrected over all of them."""

    fair: Method
    methods: tuple[Method, ...]
    kinds: tuple[str, ...]
    found: dict[tuple[str, str], Comparison]


def class_differences(gathered: Gathered, parts: Roles) -> ClassDifferences | None:
    """Of all methods that were classified; None without a fair baseline that was, or without another method."""
    fair = parts.fair
    if fair is None or not fair.frame("classification"):
        return None
    methods = [method for method in gathered.methods if method.frame("classification")]
    plain = {method.name: [(seed, _plain(frame)) for seed, frame in method.frame("classification")] for method in methods}
    groups = sorted({str(group) for runs in plain.values() for _, frame in runs for group in frame["group"].unique()})
    kinds = tuple(dict.fromkeys(str(kind) for runs in plain.values() for _, frame in runs for kind in frame["kind"].unique()))
    sums = {name: _sums(runs, groups, kinds) for name, runs in plain.items()}
    every = {
        (method.name, kind): paired(sums[method.name], [place], sums[fair.name], [place])
        for method in methods
        for place, kind in enumerate(kinds)
        if method is not fair
    }
    found = corrected_family({key: difference for key, difference in every.items() if difference is not None})
    return ClassDifferences(fair, tuple(methods), kinds, found) if found else None


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    if "calibrated" in frame.columns:
        frame = frame[~frame["calibrated"].astype(bool)]
    return frame[frame["modality"] == _JOINT]


def _sums(runs: Sequence[tuple[int, pd.DataFrame]], groups: Sequence[str], kinds: Sequence[str]) -> Sums:
    row, column = ({name: place for place, name in enumerate(names)} for names in (groups, kinds))
    totals, counts = (np.zeros((len(runs), len(groups), len(kinds))) for _ in range(2))
    for index, (_, frame) in enumerate(runs):
        where = (frame["group"].astype(str).map(row).to_numpy(), frame["kind"].astype(str).map(column).to_numpy())
        np.add.at(totals[index], where, frame["correct"].to_numpy(float))
        np.add.at(counts[index], where, 1.0)
    return Sums(tuple(seed for seed, _ in runs), tuple(groups), totals, counts)


def difference_table(compared: ClassDifferences, inks: dict[str, Ink]) -> Table:
    """A row per method, two columns a classifier: the difference in points with its interval, and p."""
    rows = []
    for method in compared.methods:
        row = [Cell(method.label, swatch=f"var({inks[method.name].variable})")]
        for kind in compared.kinds:
            row += _cells(compared.found.get((method.name, kind)), method is compared.fair)
        rows.append(row)
    columns = [Column("method", numeric=False)]
    columns += [Column(heading, group=kind) for kind in compared.kinds for heading in ("Δ accuracy", "p")]
    notes = (
        f"Points of accuracy against {compared.fair.label}, from all modalities that an item shows, nothing imputed; paired by item and seed; "
        "brackets: 95 % interval; p two-sided, corrected for all differences of this table (Holm); bold: the interval excludes zero and p is below .05.",
    )
    labels = {method.name: method.label for method in compared.methods}
    records = [
        {
            "method": labels[name], "reference": compared.fair.label, "kind": kind, "difference": 100 * one.value, "low": 100 * one.low,
            "high": 100 * one.high, "p_corrected": one.corrected,
        }
        for (name, kind), one in compared.found.items()
    ]  # fmt: skip
    caption = f"Classification against {compared.fair.label}"
    return Table("classification_differences", caption, columns, rows, notes, FIELDS, records)


def _cells(found: Comparison | None, itself: bool) -> list[Cell]:
    if found is None:
        return [Cell("reference" if itself else "–"), Cell("")]
    points = found.scaled(100)
    shown = Cell(signed(points.value), span(points, sign=True), bold=found.verdict != 0, sort=round(points.value, 6))
    return [shown, Cell(probability(found), sort=found.corrected)]


def classes_in_words(compared: ClassDifferences | None, parts: Roles) -> list[str]:
    """What the main calibrated method changes in classification: one sentence, or none."""
    main = next(iter(parts.calibrated), None)
    if compared is None or main is None:
        return []
    found = {kind: compared.found[main.name, kind] for kind in compared.kinds if (main.name, kind) in compared.found}
    clauses = []
    for direction, word in ((1, "better than"), (-1, "worse than"), (0, "not significantly different from")):
        own = [f"{kind} ({_in_words(one)})" for kind, one in found.items() if one.direction == direction]
        clauses += [f"{word} {compared.fair.label} with {listed(own)}"] if own else []
    return [f"In classification {main.label} was {'; '.join(clauses)}."] if clauses else []


def _in_words(found: Comparison) -> str:
    points = found.scaled(100)
    doubt = f", p {probability(found)} after correction" if found.direction and not found.verdict else ""
    return f"{signed(points.value)} points {span(points, sign=True)}{doubt}"
