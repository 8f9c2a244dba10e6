"""Captions against whole items before and after a matching model looked at the best candidates."""

from __future__ import annotations

import numpy as np

from calmrl_lab.reporting.content.main_tables import span
from calmrl_lab.reporting.output.palette import Ink
from calmrl_lab.reporting.output.table import Cell, Column, Table
from calmrl_lab.reporting.results.collect import Gathered
from calmrl_lab.reporting.results.estimates import Estimate

FIELDS = (
    "method",
    "query",
    "gallery",
    "scorer",
    "recall_at_1",
    "low",
    "high",
    "recall_at_5",
    "recall_at_10",
    "seeds",
    "queries",
)


def rerank_table(gathered: Gathered, inks: dict[str, Ink]) -> Table | None:
    """A row a method, direction and stage; None if no run was re-ranked."""
    import pandas as pd

    from calmrl_lab.evaluation.retrieval import recall
    from calmrl_lab.evaluation.significance import interval

    rows, records = [], []
    for method in gathered.methods:
        found = [frame.assign(seed=seed) for seed, frame in method.frame("rerank")]
        if not found:
            continue
        for (query, gallery, scorer), part in pd.concat(found).groupby(["query", "gallery", "scorer"], sort=False):
            counts = part["greater"].to_numpy(), part["equal"].to_numpy()
            generator, units = np.random.default_rng(0), (part["group"].to_numpy(), part["seed"].to_numpy())
            found_at = [interval(100 * recall(*counts, k), generator, *units, top=100) for k in (1, 5, 10)]
            first, later = found_at[0], [one.value for one in found_at[1:]]
            name = Cell(method.label, swatch=f"var({inks[method.name].variable})")
            numbers = [Cell(f"{e.value:.1f}", span(Estimate(e.value, e.low, e.high)), sort=e.value) for e in found_at]
            rows.append([name, Cell(f"{query} → {gallery}"), Cell(str(scorer)), *numbers, Cell(str(len(part) // len(found)))])
            values = (first.value, first.low, first.high, *later, len(found), len(part) // len(found))
            records.append(dict(zip(FIELDS, (method.label, query, gallery, scorer, *values), strict=True)))
    if not rows:
        return None
    heads = ("method", "direction", "scorer", "R@1 %", "R@5 %", "R@10 %", "queries")
    columns = [Column(head, numeric=index > 2) for index, head in enumerate(heads)]
    notes = (
        "+itm: the best candidates of every query re-scored by VAST's matching head. Brackets: 95 % interval, bootstrap over groups and seeds.",
    )
    return Table("rerank", "Captions and whole items, before and after matching", columns, rows, notes, FIELDS, records)
