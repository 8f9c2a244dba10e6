"""Every system in its own terms: captions against whole items and back, by the scorer of its system and by plain ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calmrl_lab.evaluation.missing_curves import run_curves
from calmrl_lab.evaluation.score_rows import recall_table

QUERY = "caption"


def own_terms(record: dict[str, Any], folder: Path) -> pd.DataFrame:
    """`recall_table` with a row per method, scorer and side of the finished runs of an experiment, nothing hidden and nothing filled in."""
    parts = []
    for method in record["methods"]:
        for run in method["runs"]:
            if not (folder / run / "summary.json").is_file():
                continue
            rows = run_curves(str(folder / run), scenarios=["full"], queries=[QUERY])
            rows = rows[~rows["calibrated"] & ~rows["scorer"].str.contains(":")]
            parts.append(rows.assign(method=method["label"], seed=run.rpartition("-s")[2]))
    return recall_table(pd.concat(parts, ignore_index=True), ("method", "scorer", "side"), np.random.default_rng(0))


def markdown(table: pd.DataFrame) -> str:
    """A row per method and scorer: Recall@1 and @10 in percent, caption to item and back."""
    lines = [
        "| method | scored by | caption finds item R@1 % | R@10 % | item finds caption R@1 % | R@10 % |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for (method, scorer), part in table.groupby(["method", "scorer"], sort=False):
        sides = {row["side"]: row for _, row in part.iterrows()}
        cells = [_recall(sides[side], k) for side in ("gallery", "query") for k in (1, 10)]
        lines.append(f"| {method} | {scorer} | " + " | ".join(cells) + " |")
    note = "- Brackets: 95 % interval, bootstrap over groups of queries and over seeds."
    return "\n".join([*lines, "", note])


def _recall(row: pd.Series, k: int) -> str:
    return f"{row[f'recall_at_{k}']:.1f} [{row[f'low_{k}']:.1f}, {row[f'high_{k}']:.1f}]"
