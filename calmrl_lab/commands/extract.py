"""`calmrl-lab extract`: frozen encoders, once, into a feature store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from calmrl_lab import console


def register(app: typer.Typer) -> None:
    app.command("extract")(extract)


def extract(
    dataset: str = typer.Option(..., help="Dataset (calmrl-lab list datasets)."),
    encoders: str | None = typer.Option(
        None, help="Preset of the dataset, or vision=NAME,caption=NAME. (default: its first preset)"
    ),
    out: Path | None = typer.Option(None, help="Store to write. (default: stores/DATASET.zarr)"),
    media: Path | None = typer.Option(None, help="Folder of the media and annotations."),
    weights: Path | None = typer.Option(None, help="Folder of encoder weights."),
    workers: int | None = typer.Option(None, help="Worker processes. (default: one a core)"),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1 or auto."),
    engine: str = typer.Option("local", help="local, or ray for a cluster."),
    max_failures: float = typer.Option(
        0.05, min=0, max=1, help="Share of media that may fail before the run counts as failed."
    ),
    assign: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="Option of the dataset; may be repeated."),
    as_json: bool = typer.Option(False, "--json", help="Print the summary as JSON."),
) -> None:
    """Run frozen encoders over a dataset, once, and write a feature store. Killed runs go on where they stopped.

    Example: calmrl-lab extract --dataset openmoji --out stores/openmoji.zarr
    """
    from calmrl_lab.config import override
    from feature_extractors.extraction import extract as run

    target = out or Path("stores") / f"{dataset}.zarr"
    done = run(
        dataset,
        target,
        encoders,
        media,
        weights,
        workers,
        device,
        engine,
        max_failures=max_failures,
        options=override({}, assign),
    )
    console.emit(done.payload(), as_json, lambda: _print(done))


def _print(summary: Any) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("modality", "rows", "absent by nature", "failed"):
        table.add_column(heading, justify="left" if heading == "modality" else "right")
    for modality, rows in summary.rows.items():
        missing = summary.missing[modality]
        table.add_row(modality, str(rows), str(missing["absent by nature"]), str(missing["failed"]))
    console.out.print(table)
    rate = summary.items / max(summary.seconds, 1e-9)
    resumed = f", {summary.resumed_blocks} blocks were there already" if summary.resumed_blocks else ""
    console.out.print(f"{summary.items} items in {summary.seconds:.0f} s ({rate:.1f}/s{resumed})")
    busiest = sorted(summary.busy.items(), key=lambda pair: -pair[1])[:3]
    console.out.print("most time went into: " + ", ".join(f"{what} ({seconds:.0f} s)" for what, seconds in busiest))
    console.out.print(f"written to {summary.store}", soft_wrap=True)
