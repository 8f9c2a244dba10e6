"""`calmrl-lab curves`, `classify` and `diagnose`: what a finished run can do beyond plain retrieval, and what its embeddings look like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from calmrl_lab import console

if TYPE_CHECKING:
    import pandas as pd


def register(app: typer.Typer) -> None:
    app.command("curves")(curves)
    app.command("classify")(classify)
    app.command("diagnose")(diagnose)


def curves(
    run: Path = typer.Option(..., help="Finished run."),
    scorer: list[str] = typer.Option(
        [],
        help="How an item with gaps is scored; may be repeated. (default: centroid and anchor; overlap or both where the run compares so)",
    ),
    scenario: list[str] = typer.Option([], help="What is hidden, as random:0.5; may be repeated. (default: rates and drops)"),
    query: list[str] = typer.Option([], help="Modality that asks; may be repeated. (default: every one)"),
    impute: str | None = typer.Option(None, help="Fill gaps with this imputer, fitted afterwards. (default: the run's own)"),
    split: str = typer.Option("test", help="Items to score."),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1 or auto."),
    as_json: bool = typer.Option(False, "--json", help="Print the tables as JSON."),
) -> None:
    """Recall when modalities are missing at test time, gaps filled or not, and what all modalities gain over the best single one.

    Example: calmrl-lab curves --run runs/demo/calmrl-ppca-s0 --query caption --scorer centroid
    """
    import numpy as np

    from calmrl_lab.curves import aggregation_gain, curve_table, run_curves

    frame = run_curves(str(run), scorer or None, scenario or None, query or None, impute, split, device)
    table, gain = (make(frame, np.random.default_rng(0)) for make in (curve_table, aggregation_gain))
    console.emit(
        {"curves": table.to_dict("records"), "gain": gain.to_dict("records")}, as_json, lambda: _print_curves(table, gain)
    )


def classify(
    run: Path = typer.Option(..., help="Finished run."),
    label: str | None = typer.Option(None, help="Label of the store. (default: its only one)"),
    kind: list[str] = typer.Option(["zero-shot", "centroid", "knn", "linear"], help="Kind of classifier; may be repeated."),
    text: str | None = typer.Option(None, help="Modality that stands for the class text. (default: caption)"),
    split: str = typer.Option("test", help="Items to classify; the training split teaches."),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1 or auto."),
    as_json: bool = typer.Option(False, "--json", help="Print the table as JSON."),
) -> None:
    """Classify items from each single modality and from all they show; gaps allowed.

    Example: calmrl-lab classify --run runs/demo/calmrl-ppca-s0 --label category
    """
    import numpy as np

    from calmrl_lab.classification import accuracy_table, classify_run

    table = accuracy_table(classify_run(str(run), label, kind, text, split, device), np.random.default_rng(0))
    numbers = {"accuracy": "{:.1f}", "low": "{:.1f}", "high": "{:.1f}", "macro": "{:.1f}", "majority": "{:.1f}"}
    columns = {"kind": "{}", "modality": "{}", "calibrated": "{}", **numbers, "items": "{}"}
    console.emit(table.to_dict("records"), as_json, lambda: _print(table, columns, "accuracy in percent"))


def diagnose(
    run: Path = typer.Option(..., help="Finished run."),
    split: str = typer.Option("test", help="Items to look at."),
    slices: list[str] = typer.Option(
        ["pattern", "group_size"],
        "--slice",
        help="What to cut Recall@1 by: pattern, group_size, or a number of anchors.parquet as shift_observed; may be repeated.",
    ),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1 or auto."),
    as_json: bool = typer.Option(False, "--json", help="Print the tables as JSON."),
) -> None:
    """Modality gap, alignment, uniformity, spectra, anchor shifts and bounds, imputation errors against expected ones, Recall@1 in slices.

    Example: calmrl-lab diagnose --run runs/demo/calmrl-ppca-s0 --slice pattern --slice shift_observed
    """
    from calmrl_lab.diagnostics import chance_warning

    tables, scores = _diagnosis(run, split, slices, device)
    warning = None if scores is None else chance_warning(scores)
    payload = {name: table.to_dict("records") for name, table in tables.items()}
    console.emit({**payload, "warning": warning}, as_json, lambda: _print_diagnosis(tables, warning))


def _diagnosis(run: Path, split: str, cuts: list[str], device: str) -> tuple[dict[str, pd.DataFrame], pd.DataFrame | None]:
    """The tables by name, and the scores if the run was evaluated."""
    import numpy as np

    from calmrl_lab import diagnostics
    from calmrl_lab.embedded import RunSpace

    space = RunSpace.open(run, device=device)
    embedded = space.embed(split)
    tables = {
        "pairs": diagnostics.modality_pairs(embedded),
        "modalities": diagnostics.modality_table(embedded),
        "spectrum": diagnostics.spectrum_by_pattern(embedded),
    }
    anchors = space.run.read_frame("anchors.parquet") if (run / "anchors.parquet").is_file() else None
    if anchors is not None and len(anchors):
        tables["anchors"] = diagnostics.shifts_by_pattern(anchors)
    if (run / "imputation.parquet").is_file():
        errors = space.run.read_frame("imputation.parquet")
        tables["reliability"] = diagnostics.reliability(errors[errors["imputer"] == space.run.config.impute], bins=5)
    if not (run / "scores.parquet").is_file():
        return tables, None
    scores = space.run.read_frame("scores.parquet")
    facts = scores if anchors is None or not len(anchors) else diagnostics.with_anchor_facts(scores, anchors)
    for cut in cuts:
        tables[f"recall_by_{cut}"] = diagnostics.slices(facts, cut, np.random.default_rng(0))
    return tables, scores


def _print_curves(table: pd.DataFrame, gain: pd.DataFrame) -> None:
    from calmrl_lab.scorer_names import is_single

    joint = _short(table[~table["scorer"].map(is_single)], "recall_at_1", "low_1", "high_1", "{:.1f}")
    columns = {"asks": "{}", "hidden": "{}", "scorer": "{}", "R@1 (95 %)": "{:>}"}
    numbers = {"R@10": "{:.1f}", "medR": "{:.0f}"}
    joint = joint.rename(columns={"recall_at_10": "R@10", "median_rank": "medR"})
    _print(
        joint, columns | numbers, "Recall in percent: a modality asks for items that show the others; 'to' it, the items ask"
    )
    console.out.print()
    gains = _short(gain, "gain", "low", "high", "{:+.1f}").rename(columns={"R@1 (95 %)": "gain (95 %)", "best_single": "best"})
    columns = {"asks": "{}", "hidden": "{}", "scorer": "{}", "best": "{}", "gain (95 %)": "{:>}"}
    _print(gains, columns, "Gain in Recall@1 of all modalities of an item over its best single one")


def _short(table: pd.DataFrame, value: str, low: str, high: str, form: str) -> pd.DataFrame:
    """The columns of a narrow table: the joint side is called 'items', the interval stands beside its number."""
    numbers = table[[value, low, high]].itertuples(index=False, name=None)
    return table.assign(
        asks=table["query"].where(table["side"] == "gallery", "to " + table["gallery"]),
        hidden=table["gallery_scenario"].replace("full", "nothing"),
        scorer=table["scorer"].where(~table["calibrated"].astype(bool), table["scorer"] + ", filled"),
        **{"R@1 (95 %)": [f"{form.format(v)} ({form.format(a)}, {form.format(b)})" for v, a, b in numbers]},
    )


def _print_diagnosis(tables: dict[str, pd.DataFrame], warning: str | None) -> None:
    titles = {
        "pairs": "pairs of modalities",
        "modalities": "modalities",
        "spectrum": "singular values of the items' modality sets, mean by what they show",
        "anchors": "anchor shift by what is observed, its proven bounds",
        "reliability": "imputation error: predicted and actual",
    }
    for name, table in tables.items():
        words = {column: "{}" if table[column].dtype.kind not in "f" else "{:.3f}" for column in table.columns}
        _print(table, words, titles.get(name) or f"Recall@1 in percent by {name.removeprefix('recall_by_').replace('_', ' ')}")
        console.out.print()
    if warning:
        console.out.print(warning, style="bold red", soft_wrap=True)


def _print(table: pd.DataFrame, columns: dict[str, str], title: str) -> None:
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for heading, form in columns.items():
        shown.add_column(heading.replace("_", " "), justify="left" if form == "{}" else "right")
    for row in table.to_dict("records"):
        shown.add_row(*(form.format(_plain(row[heading])) for heading, form in columns.items()))
    console.show(shown)


def _plain(value: Any) -> Any:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
