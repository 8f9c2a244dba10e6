"""`calmrl-lab evaluate` and `calmrl-lab compare`: scores of one run, the paired difference of two."""

from __future__ import annotations

from pathlib import Path

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
    console.emit(table.to_dict("records"), as_json, lambda: _print(table))
    if warning:
        console.note(warning)


def _print(table: object) -> None:
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for heading in ("query", "gallery", "R@1 %", "R@5 %", "R@10 %", "median rank", "queries", "chance R@1 %"):
        shown.add_column(heading, justify="left" if heading in ("query", "gallery") else "right")
    for row in table.itertuples(index=False):  # type: ignore[attr-defined]
        numbers = (row.recall_at_1, row.recall_at_5, row.recall_at_10, row.median_rank)
        shown.add_row(row.query, row.gallery, *(f"{n:.1f}" for n in numbers), str(row.queries), f"{row.chance_recall_at_1:.2f}")
    console.out.print(shown)
    console.out.print("ties are counted as expected under a random order; nothing is hidden from the gallery")
