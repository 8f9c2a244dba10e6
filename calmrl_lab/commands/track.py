"""`calmrl-lab track`: metrics of runs for TensorBoard."""

from __future__ import annotations

from pathlib import Path

import typer

from calmrl_lab.runtime import console


def register(app: typer.Typer) -> None:
    app.command("track")(track)


def track(
    runs: Path = typer.Option(..., help="A run, or a folder of runs."),
    out: Path = typer.Option(Path("tensorboard"), help="Folder for the event files."),
    as_json: bool = typer.Option(False, "--json", help="Print the number of values of every run as JSON."),
) -> None:
    """Export the metrics of runs to TensorBoard (extra tracking).

    Example: calmrl-lab track --runs runs/demo --out tensorboard && tensorboard --logdir tensorboard
    """
    from calmrl_lab.runs.tensorboard import export_to_tensorboard

    written = export_to_tensorboard(runs, out)
    total = sum(written.values())
    console.emit(
        written,
        as_json,
        lambda: console.out.print(
            f"{total} values of {len(written)} runs in {out}; next: tensorboard --logdir {out}", soft_wrap=True
        ),
    )
