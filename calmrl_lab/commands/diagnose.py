"""The command `diagnose`: what the embeddings of a run look like, and where it does well."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from calmrl_lab.runtime import console
from calmrl_lab.runtime.console import print_table

if TYPE_CHECKING:
    import pandas as pd


def register(app: typer.Typer) -> None:
    app.command("diagnose")(diagnose)


def diagnose(
    run: Path = typer.Option(..., help="Finished run."),
    split: str = typer.Option("test", help="Items to look at."),
    slices: list[str] = typer.Option(
        ["pattern", "group_size"],
        "--slice",
        metavar="NAME",
        help="Recall@1 by slices of this: pattern, group_size, predicted_gain or another number of anchors.parquet; may be repeated.",
    ),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1 or auto."),
    as_json: bool = typer.Option(False, "--json", help="Print the tables as JSON."),
) -> None:
    """Modality gap, alignment, uniformity, spectra, anchor shifts and bounds, imputation errors against expected ones, Recall@1 in slices.

    Example: calmrl-lab diagnose --run runs/demo/calmrl-ppca-s0 --slice pattern --slice shift_observed
    """
    from calmrl_lab.evaluation.diagnostics import chance_warning
    from calmrl_lab.evaluation.run_items import note_comparison

    tables, scores = _diagnosis(run, split, slices, device)
    warning = None if scores is None else chance_warning(scores)
    payload = {name: table.to_dict("records") for name, table in tables.items()}
    console.emit({**payload, "warning": warning}, as_json, lambda: _print_diagnosis(tables, warning))
    note_comparison(run, "embeddings, spectra and anchors are those of its heads, ranks are by what it was evaluated with")


def _diagnosis(run: Path, split: str, cuts: list[str], device: str) -> tuple[dict[str, pd.DataFrame], pd.DataFrame | None]:
    """The tables by name, and the scores if the run was evaluated."""
    import numpy as np

    from calmrl_lab.evaluation import diagnostics
    from calmrl_lab.evaluation.run_items import open_run

    opened, model, items = open_run(run, device=device)
    embedded = model.embed(items.of(split))
    tables = {
        "pairs": diagnostics.modality_pairs(embedded),
        "modalities": diagnostics.modality_table(embedded),
        "spectrum": diagnostics.spectrum_by_pattern(embedded),
    }
    if not opened.has(opened.SCORES):
        return tables, None
    scored = opened.evaluation
    digest = (scored.get("store") or {}).get("digest", items.store.digest)
    if (scored.get("split"), digest) != (split, items.store.digest):
        console.note(
            f"run '{run.name}' was evaluated on other items than those of split '{split}': its ranks and errors are left out"
        )
        return tables, None
    scores = facts = opened.read_frame(opened.SCORES)
    anchors = opened.read_frame(opened.ANCHORS) if opened.has(opened.ANCHORS) else None
    if anchors is not None and len(anchors):
        tables["anchors"] = diagnostics.shifts_by_pattern(anchors)
        if model.imputer is not None:
            anchors = diagnostics.with_predicted_gain(anchors, embedded, model.imputer)
            tables["gain"] = diagnostics.shifts_by_gain(anchors)
        facts = diagnostics.with_anchor_facts(scores, anchors)
    if opened.has(opened.IMPUTATION):
        errors = opened.read_frame(opened.IMPUTATION)
        tables["reliability"] = diagnostics.reliability(errors[errors["imputer"] == opened.config.impute], bins=5)
    for cut in cuts:
        tables[f"recall_by_{cut}"] = diagnostics.slices(facts, cut, np.random.default_rng(0))
    return tables, scores


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
        table = table.rename(columns=lambda column: column.removeprefix("shift_"))
        words = {column: "{}" if table[column].dtype.kind not in "f" else "{:.3f}" for column in table.columns}
        print_table(
            table, words, titles.get(name) or f"Recall@1 in percent by {name.removeprefix('recall_by_').replace('_', ' ')}"
        )
        console.out.print()
    if warning:
        console.out.print(warning, style="bold red", soft_wrap=True)
