"""`calmrl-lab curves`, `classify` and `diagnose`: what a finished run can do beyond plain retrieval, and what its embeddings look like."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from calmrl_lab import console

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from calmrl_lab.store import FeatureStore


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
    kind: list[str] = typer.Option(
        [], help="zero-shot, captions, centroid, knn or linear; may be repeated. (default: all that are possible)"
    ),
    text: str | None = typer.Option(None, help="Modality of the texts of classes. (default: caption)"),
    encode_classes: bool = typer.Option(
        False, "--encode-classes", help="Zero-shot by the names of the classes, encoded as --text is."
    ),
    weights: Path | None = typer.Option(None, help="Folder of encoder weights, for --encode-classes."),
    split: str = typer.Option("test", help="Items to classify; the training split teaches."),
    per_class: bool = typer.Option(False, "--per-class", help="A row a class, and what it is taken for instead."),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1 or auto."),
    as_json: bool = typer.Option(False, "--json", help="Print the table as JSON."),
) -> None:
    """Classify items from each single modality and from all they show; gaps allowed.

    Example: calmrl-lab classify --run runs/demo/calmrl-ppca-s0 --label category
    """
    import numpy as np

    from calmrl_lab.classification import accuracy_table, class_table, classify_run

    encode = partial(_encoded_classes, weights=weights) if encode_classes else None
    frame = classify_run(str(run), label, kind or None, text, split, device, encode)
    table = class_table(frame) if per_class else accuracy_table(frame, np.random.default_rng(0))
    console.emit(table.to_dict("records"), as_json, lambda: _print_classes(table))
    _say_compared(run, "classes are told apart by the embeddings of its heads")


def _encoded_classes(store: FeatureStore, modality: str, names: list[str], weights: Path | None) -> np.ndarray:
    from calmrl_lab.gallery import encoder_of

    # Like `extract`, this command is an edge: it brings encoders and cached features together.
    from feature_extractors.text_queries import encode_texts

    return encode_texts(encoder_of(store, modality), modality, names, weights)


def _say_compared(run: Path, what: str) -> None:
    """A note for runs that do not compare pairs by cosine, where a command does."""
    from calmrl_lab.config import SCORE_WORDS
    from calmrl_lab.runs import Run

    score = Run.open(run).config.score
    if score != "cosine":
        console.note(f"run '{run.name}' compares pairs by {SCORE_WORDS[score]}; {what}")


def diagnose(
    run: Path = typer.Option(..., help="Finished run."),
    split: str = typer.Option("test", help="Items to look at."),
    slices: list[str] = typer.Option(
        ["pattern", "group_size"],
        "--slice",
        help="What to cut Recall@1 by: pattern, group_size, predicted_gain or another number of anchors.parquet; may be repeated.",
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
    _say_compared(run, "embeddings, spectra and anchors are those of its heads, ranks are by what it was evaluated with")


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
    if not (run / "scores.parquet").is_file():
        return tables, None
    scored = space.run.read_json("evaluation.json")
    digest = (scored.get("store") or {}).get("digest", space.store.digest)
    if (scored.get("split"), digest) != (split, space.store.digest):
        console.note(
            f"run '{run.name}' was evaluated on other items than those of split '{split}': its ranks and errors are left out"
        )
        return tables, None
    scores = facts = space.run.read_frame("scores.parquet")
    anchors = space.run.read_frame("anchors.parquet") if (run / "anchors.parquet").is_file() else None
    if anchors is not None and len(anchors):
        tables["anchors"] = diagnostics.shifts_by_pattern(anchors)
        imputer = space.imputer()
        if imputer is not None:
            anchors = diagnostics.with_predicted_gain(anchors, embedded, imputer)
            tables["gain"] = diagnostics.shifts_by_gain(anchors)
        facts = diagnostics.with_anchor_facts(scores, anchors)
    if (run / "imputation.parquet").is_file():
        errors = space.run.read_frame("imputation.parquet")
        tables["reliability"] = diagnostics.reliability(errors[errors["imputer"] == space.run.config.impute], bins=5)
    for cut in cuts:
        tables[f"recall_by_{cut}"] = diagnostics.slices(facts, cut, np.random.default_rng(0))
    return tables, scores


def _print_classes(table: pd.DataFrame) -> None:
    words = {"kind": "{}", "modality": "{}"}
    named = table.assign(modality=table["modality"].where(~table["calibrated"].astype(bool), table["modality"] + ", filled"))
    if "mistaken_for" in table.columns:
        columns = {**words, "label": "{}", "accuracy": "{:.1f}", "items": "{:d}", "mistaken_for": "{}"}
        return _print(named, columns, "accuracy in percent by class, and the class it is most often taken for instead")
    numbers = table[["accuracy", "low", "high"]].itertuples(index=False, name=None)
    shown = named.assign(
        **{"accuracy (95 %)": [f"{v:.1f} ({low:.1f}, {high:.1f})" for v, low, high in numbers]},
        **{"top 5": table["accuracy_at_5"].map(lambda value: "-" if value != value else f"{value:.1f}")},
        unknown=table["unknown_class"],
    )
    columns = {**words, "accuracy (95 %)": "{:>}", "top 5": "{:>}", "macro": "{:.1f}", "majority": "{:.1f}", "items": "{:d}"}
    _print(shown, {**columns, "classes": "{:d}", "unknown": "{:d}"}, "accuracy in percent")
    console.out.print(
        "macro: mean over classes; majority: always naming the largest class; items: those with a label that show the modality; unknown: "
        "items of a class that was not compared with, which are wrong",
        soft_wrap=True,
    )


def _print_curves(table: pd.DataFrame, gain: pd.DataFrame) -> None:
    from calmrl_lab.scorer_names import is_single

    # Single modalities are what a gain is measured against; shown if nothing else was asked for.
    single = table["scorer"].map(is_single).astype(bool)
    joint = _short(table if single.all() else table[~single], "recall_at_1", "low_1", "high_1", "{:.1f}")
    columns = {"asks": "{}", "hidden": "{}", "scorer": "{}", "R@1 (95 %)": "{:>}"}
    numbers = {"R@5": "{:.1f}", "R@10": "{:.1f}", "medR": "{:.0f}", "MRR": "{:.3f}", "queries": "{:d}"}
    # Counts of what cannot be scored are worth a column only where there is any.
    counts = {"left out": "without_positive", "show nothing": "unserved"}
    counts = {heading: name for heading, name in counts.items() if joint[name].any()}
    joint = joint.rename(columns={"recall_at_5": "R@5", "recall_at_10": "R@10", "median_rank": "medR", "mrr": "MRR"})
    joint = joint.rename(columns={name: heading for heading, name in counts.items()})
    title = "Recall in percent: a modality asks for items that show the others; 'to' it, the items ask"
    _print(joint, columns | numbers | dict.fromkeys(counts, "{:d}"), title)
    if "left out" in counts:
        console.out.print("left out: queries of items that lack the modality they ask for, so that no answer is right")
    if "show nothing" in counts:
        console.out.print("show nothing: items without any modality to go by, which rank last, and guess when they ask")
    if gain.empty:
        return
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
        "gain": "anchor shift by the gain that the imputer predicts, and the share of items that calibration brought closer (%)",
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
