"""The command `classify`: classes found by the embeddings of a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from calmrl_lab.runtime import console
from calmrl_lab.runtime.console import print_table

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from calmrl_lab.store import FeatureStore


def register(app: typer.Typer) -> None:
    app.command("classify")(classify)


def classify(
    run: Path = typer.Option(..., help="Finished run."),
    label: str | None = typer.Option(None, help="Label of the store. (default: its only one)"),
    classifier: list[str] = typer.Option(
        [],
        metavar="NAME",
        help="zero-shot, captions, centroid, knn or linear; may be repeated. (default: all that are possible)",
    ),
    text: str | None = typer.Option(None, help="Modality of the texts of classes. (default: caption)"),
    encode_classes: bool = typer.Option(
        False, "--encode-classes", help="Zero-shot by the names of the classes, encoded as --text is."
    ),
    weights: Path | None = typer.Option(None, help="Folder of encoder weights, for --encode-classes."),
    split: str = typer.Option("test", help="Items to classify; classifiers learn from the training split."),
    per_class: bool = typer.Option(False, "--per-class", help="A row per class, and what it is taken for instead."),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1 or auto."),
    as_json: bool = typer.Option(False, "--json", help="Print the table as JSON."),
) -> None:
    """Classify items from each single modality and from all they show; gaps allowed.

    Example: calmrl-lab classify --run runs/demo/calmrl-ppca-s0 --label category
    """
    import numpy as np

    from calmrl_lab.evaluation.classification import accuracy_table, class_table, classify_run
    from calmrl_lab.evaluation.run_items import note_comparison

    encode = partial(_encoded_classes, weights=weights) if encode_classes else None
    frame = classify_run(str(run), label, classifier or None, text, split, device, encode)
    table = class_table(frame) if per_class else accuracy_table(frame, np.random.default_rng(0))
    console.emit(table.to_dict("records"), as_json, lambda: _print_classes(table))
    note_comparison(run, "classes are told apart by the embeddings of its heads")


def _encoded_classes(store: FeatureStore, modality: str, names: list[str], weights: Path | None) -> np.ndarray:
    from calmrl_lab.search.index_folder import encoder_of

    # Like `extract`, this command is an edge: it brings encoders and cached features together.
    from feature_extractors.text_queries import encode_texts

    return encode_texts(encoder_of(store, modality), modality, names, weights)


def _print_classes(table: pd.DataFrame) -> None:
    words = {"kind": "{}", "modality": "{}"}
    named = table.assign(modality=table["modality"].where(~table["calibrated"].astype(bool), table["modality"] + ", filled"))
    if "mistaken_for" in table.columns:
        columns = {**words, "label": "{}", "accuracy": "{:.1f}", "items": "{:d}", "mistaken_for": "{}"}
        return print_table(named, columns, "accuracy in percent by class, and the class it is most often taken for instead")
    numbers = table[["accuracy", "low", "high"]].itertuples(index=False, name=None)
    shown = named.assign(
        **{"accuracy (95 %)": [f"{v:.1f} ({low:.1f}, {high:.1f})" for v, low, high in numbers]},
        **{"top 5": table["accuracy_at_5"].map(lambda value: "-" if value != value else f"{value:.1f}")},
        unknown=table["unknown_class"],
    )
    columns = {**words, "accuracy (95 %)": "{:>}", "top 5": "{:>}", "macro": "{:.1f}", "majority": "{:.1f}", "items": "{:d}"}
    notes = (
        "macro: mean over classes; majority: always naming the largest class; items: those with a label that show the modality"
    )
    columns["classes"] = "{:d}"
    if shown["unknown"].any():
        columns["unknown"] = "{:d}"
        notes += "; unknown: items of a class that was not compared with, which are wrong"
    print_table(shown, columns, "accuracy in percent")
    console.out.print(notes, soft_wrap=True)
