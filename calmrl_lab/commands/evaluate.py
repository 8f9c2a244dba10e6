"""`calmrl-lab evaluate`: the scores of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from calmrl_lab import console


def register(app: typer.Typer) -> None:
    app.command("evaluate")(evaluate)


def evaluate(
    run: Path = typer.Option(..., help="Run to score."),
    store: Path | None = typer.Option(None, help="Score on this store instead of the one it was trained on."),
    split: str = typer.Option("test", help="Items to score."),
    direction: list[str] = typer.Option(
        [], metavar="QUERY:GALLERY", help="Direction, as caption:vision; may be repeated. (default: all)"
    ),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1 or auto."),
    as_json: bool = typer.Option(False, "--json", help="Print the table as JSON."),
) -> None:
    """Rank every query of a split in both directions and write the ranks, imputation errors and anchor shifts into the run.

    Example: calmrl-lab evaluate --run runs/demo/calmrl-ppca-s0 --direction caption:vision
    """
    from calmrl_lab.errors import CalmrlError
    from calmrl_lab.evaluation import evaluate as score

    pairs = [text.partition(":")[::2] for text in direction]
    for text, pair in zip(direction, pairs, strict=True):
        if not all(pair) or ":" in pair[1]:
            raise CalmrlError(
                f"--direction '{text}' is not of the form query:gallery", hint="for example --direction caption:vision"
            )
    from calmrl_lab.diagnostics import chance_warning

    scored = score(run, pairs or None, store=store, split=split, device=device)
    table, warning = scored.table(), chance_warning(scored.scores)
    console.emit(table.to_dict("records"), as_json, lambda: _print(table, scored.coverage))
    if warning:
        console.note(warning)


def _print(table: Any, coverage: dict[str, Any]) -> None:
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for heading in ("query", "gallery", "R@1 %", "R@5 %", "R@10 %", "median rank", "queries", "left out", "chance R@1 %"):
        shown.add_column(heading, justify="left" if heading in ("query", "gallery") else "right")
    for row in table.itertuples(index=False):
        numbers = (row.recall_at_1, row.recall_at_5, row.recall_at_10, row.median_rank)
        counts = (str(row.queries), str(row.without_positive))
        shown.add_row(row.query, row.gallery, *(f"{n:.1f}" for n in numbers), *counts, f"{row.chance_recall_at_1:.2f}")
    console.out.print(shown)
    if table["without_positive"].any():
        console.out.print("left out: queries whose item lacks the modality of the gallery, so that no answer is right")
    for pair in coverage["unserved"]:
        console.out.print(f"{pair['query']}->{pair['gallery']} cannot be asked: no item has both modalities")
    if gate := coverage.get("gate"):
        console.out.print(
            f"gate: {gate['left_uncalibrated']} of {gate['scored']} cases left uncalibrated; {100 * gate['harm_rate']:.1f} % harmed "
            f"by calibration (at most {100 * gate['level']:g} % asked)"
        )
    if coverage["empty_items"]:
        console.out.print(f"{coverage['empty_items']} of {coverage['items']} items show no modality at all")
    console.out.print("ties are counted as expected under a random order; nothing is hidden from the gallery")
