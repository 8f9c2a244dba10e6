"""The command `curves`: retrieval with modalities missing at test time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from calmrl_lab.runtime import console
from calmrl_lab.runtime.console import print_table

if TYPE_CHECKING:
    import pandas as pd


def register(app: typer.Typer) -> None:
    app.command("curves")(curves)


def curves(
    run: Path = typer.Option(..., help="Finished run."),
    scorer: list[str] = typer.Option(
        [],
        metavar="NAME",
        help="How an item with gaps is scored; may be repeated. (default: centroid, anchor and the scorer of the objective's own system; for a run that does not compare by cosine, its similarity)",
    ),
    scenario: list[str] = typer.Option(
        [], metavar="SCENARIO", help="What is hidden, as random:0.5; may be repeated. (default: rates and drops)"
    ),
    query: list[str] = typer.Option([], metavar="NAME", help="Modality of the queries; may be repeated. (default: every one)"),
    impute: str | None = typer.Option(None, help="Fill gaps with this imputer, fitted afterwards. (default: the run's own)"),
    split: str = typer.Option("test", help="Items to score."),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1 or auto."),
    as_json: bool = typer.Option(False, "--json", help="Print the tables as JSON."),
) -> None:
    """Recall when modalities are missing at test time, gaps filled or not, and what all modalities gain over the best single one.

    Example: calmrl-lab curves --run runs/demo/calmrl-ppca-s0 --query caption --scorer centroid
    """
    import numpy as np

    from calmrl_lab.evaluation.missing_curves import aggregation_gain, curve_table, run_curves

    frame = run_curves(str(run), scorer or None, scenario or None, query or None, impute, split, device)
    table, gain = (make(frame, np.random.default_rng(0)) for make in (curve_table, aggregation_gain))
    console.emit(
        {"curves": table.to_dict("records"), "gain": gain.to_dict("records")}, as_json, lambda: _print_curves(table, gain)
    )


def _print_curves(table: pd.DataFrame, gain: pd.DataFrame) -> None:
    from calmrl_lab.scorers._names import is_single

    # Single modalities are what a gain is measured against; shown if nothing else was named.
    single = table["scorer"].map(is_single).astype(bool)
    joint = _short(table if single.all() else table[~single], "recall_at_1", "low_1", "high_1", "{:.1f}")
    columns = {"query": "{}", "hidden": "{}", "scorer": "{}", "R@1 (95 %)": "{:>}"}
    numbers = {"R@5": "{:.1f}", "R@10": "{:.1f}", "median": "{:.0f}", "queries": "{:d}"}
    # Counts of what cannot be scored are worth a column only where there is any.
    counts = {"left out": "without_positive", "show nothing": "unserved"}
    counts = {heading: name for heading, name in counts.items() if joint[name].any()}
    joint = joint.rename(columns={"recall_at_5": "R@5", "recall_at_10": "R@10", "median_rank": "median"})
    joint = joint.rename(columns={name: heading for heading, name in counts.items()})
    title = "Recall in percent: queries of one modality against items that show the others; 'to' it, items are the queries"
    print_table(joint, columns | numbers | dict.fromkeys(counts, "{:d}"), title)
    if "left out" in counts:
        console.out.print("left out: queries whose item lacks the modality of the gallery, so that no candidate is right")
    if "show nothing" in counts:
        console.out.print(
            "show nothing: items without any modality, which rank last as candidates and rank at random as queries"
        )
    if gain.empty:
        return
    console.out.print()
    gains = _short(gain, "gain", "low", "high", "{:+.1f}").rename(columns={"R@1 (95 %)": "gain (95 %)", "best_single": "best"})
    columns = {"query": "{}", "hidden": "{}", "scorer": "{}", "best": "{}", "gain (95 %)": "{:>}"}
    print_table(gains, columns, "Gain in Recall@1 of all modalities of an item over its best single one")


def _short(table: pd.DataFrame, value: str, low: str, high: str, form: str) -> pd.DataFrame:
    """The columns of a narrow table: the joint side is called 'items', the interval stands beside its number."""
    numbers = table[[value, low, high]].itertuples(index=False, name=None)
    return table.assign(
        query=table["query"].where(table["side"] == "gallery", "to " + table["gallery"]),
        hidden=table["gallery_scenario"].replace("full", "nothing"),
        scorer=table["scorer"].where(~table["calibrated"].astype(bool), table["scorer"] + ", filled"),
        **{"R@1 (95 %)": [f"{form.format(v)} ({form.format(a)}, {form.format(b)})" for v, a, b in numbers]},
    )
