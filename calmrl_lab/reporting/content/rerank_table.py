"""The table of re-ranking: captions against whole items, before and after the matching model."""

from __future__ import annotations

from calmrl_lab.evaluation.significance import Interval
from calmrl_lab.reporting.content.main_tables import span
from calmrl_lab.reporting.output.palette import Ink
from calmrl_lab.reporting.output.table import Cell, Column, Table
from calmrl_lab.reporting.results.collect import Gathered

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
    """A row per method, direction and stage; None if no run was re-ranked."""
    import pandas as pd

    from calmrl_lab.evaluation.score_rows import recall_table

    rows, records = [], []
    for method in gathered.methods:
        found = [frame.assign(seed=seed) for seed, frame in method.frame("rerank")]
        if not found:
            continue
        name = Cell(method.label, swatch=f"var({inks[method.name].variable})")
        table = recall_table(pd.concat(found), ("query", "gallery", "scorer"))
        for row in table.to_dict("records"):
            estimates = [Interval(row[f"recall_at_{k}"], row[f"low_{k}"], row[f"high_{k}"]) for k in (1, 5, 10)]
            numbers = [Cell(f"{e.value:.1f}", span(e), sort=e.value) for e in estimates]
            queries, direction = row["queries"] // len(found), f"{row['query']} → {row['gallery']}"
            rows.append([name, Cell(direction), Cell(row["scorer"]), *numbers, Cell(str(queries))])
            first, later = estimates[0], [one.value for one in estimates[1:]]
            values = (
                row["query"],
                row["gallery"],
                row["scorer"],
                first.value,
                first.low,
                first.high,
                *later,
                len(found),
                queries,
            )
            records.append(dict(zip(FIELDS, (method.label, *values), strict=True)))
    if not rows:
        return None
    heads = ("method", "direction", "scorer", "R@1 %", "R@5 %", "R@10 %", "queries")
    columns = [Column(head, numeric=index > 2) for index, head in enumerate(heads)]
    notes = (
        "+itm: the best candidates of every query re-scored by VAST's matching head. Brackets: 95 % interval, bootstrap over groups and seeds.",
    )
    return Table("rerank", "Captions and whole items, before and after matching", columns, rows, notes, FIELDS, records)
