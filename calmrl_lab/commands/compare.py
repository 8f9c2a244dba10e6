"""`calmrl-lab compare`: is one run or method better than another, on the same queries?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from calmrl_lab.runtime import console

if TYPE_CHECKING:
    import pandas as pd


def register(app: typer.Typer) -> None:
    app.command("compare")(compare)


def compare(
    first: Path = typer.Argument(..., help="Evaluated run, or the name of a method without -s<seed> for all its seeds."),
    second: Path = typer.Argument(..., help="What it is compared with."),
    k: int = typer.Option(1, "-k", "--top", min=1, help="Recall at which rank."),
    seed: int = typer.Option(0, help="Seed of the resamples."),
    as_json: bool = typer.Option(False, "--json", help="Print the differences as JSON."),
) -> None:
    """Paired differences of recall, first minus second, with 95 % intervals and p-values corrected for the number of directions.

    Example: calmrl-lab compare runs/demo/calmrl-ppca runs/demo/pmrl
    """
    import numpy as np

    from calmrl_lab.evaluation.comparison import compare_runs, runs_at

    table = compare_runs(runs_at(first), runs_at(second), np.random.default_rng(seed), k)
    console.emit(table.to_dict("records"), as_json, lambda: _print(table, first.name, second.name, k))


def _print(table: pd.DataFrame, first: str, second: str, k: int) -> None:
    from calmrl_lab.evaluation.comparison import MEAN

    shown = console.table(title=f"Recall@{k} in percent: {first} minus {second}")
    for heading in ("query", "gallery", "first", "second", "difference", "95 % interval", "p (Holm)", "pooled"):
        shown.add_column(heading, justify="left" if heading in ("query", "gallery") else "right")
    for row in table.to_dict("records"):
        difference = f"{row['difference']:+.2f}"
        shown.add_row(
            row["query"],
            row["gallery"],
            f"{row['first']:.1f}",
            f"{row['second']:.1f}",
            f"[bold]{difference}[/bold]" if row["clear"] else difference,
            f"{row['low']:+.2f} to {row['high']:+.2f}",
            "< .001" if row["corrected"] < 0.001 else f"{row['corrected']:.3f}",
            f"{row['pooled']:+.2f}" if row["query"] == MEAN else "",
        )
    console.show(shown)
    if table["query"].eq(MEAN).any():
        console.out.print("mean: every direction counts alike, as in reports; pooled: every query does", soft_wrap=True)
    last = table.iloc[-1]
    if last["first_similarity"] != last["second_similarity"]:
        console.out.print(
            f"{first} compares pairs by {last['first_similarity']}, {second} by {last['second_similarity']}", soft_wrap=True
        )
    seeds = f"{last['seeds']} seeds as a random effect" if last["seeds"] > 1 else "one seed: another one may differ"
    console.out.print(
        f"{last['groups']} groups of queries, {seeds}; bold: interval and corrected p exclude zero", soft_wrap=True
    )
    if last["unpaired"]:
        console.out.print(f"{last['unpaired']} queries of one side only were left out")
