"""`calmrl-lab experiment`: many runs from one file."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from calmrl_lab import console


def register(app: typer.Typer) -> None:
    app.command("experiment")(experiment)


def experiment(
    file: Path = typer.Argument(..., help="Experiment file (YAML)."),
    data: str | None = typer.Option(None, help="Which of the data of the file. (default: its first)"),
    runs: Path = typer.Option(
        Path("runs"), help="Folder for the runs; they go into a folder of the file's (and the data's) name there."
    ),
    jobs: int = typer.Option(os.cpu_count() or 1, min=1, help="Runs at a time."),
    assign: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Change a setting of the file, as common.epochs=5."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the plan and stop."),
    as_json: bool = typer.Option(False, "--json", help="Print the outcome as JSON."),
) -> None:
    """Run every method of an experiment file with every seed; finished runs are skipped, failed ones reported.

    Example: calmrl-lab experiment experiments/demo.yaml
    """
    from calmrl_lab.errors import WorkFailedError
    from calmrl_lab.experiments import plan, read_experiment, run_experiment

    asked = read_experiment(file, assign, data)
    folder = runs / (file.stem if asked.data is None else f"{file.stem}-{asked.data}")
    if dry_run:
        rows = plan(asked, folder)
        console.emit(
            rows, as_json, lambda: console.out.print("\n".join(f"{r['run']}: {r['what']}" for r in rows), markup=False)
        )
        return
    record = run_experiment(asked, folder, jobs)
    made = len(asked.methods) * len(asked.seeds) - len(record["failed"])
    console.emit(
        record, as_json, lambda: console.out.print(f"{made} runs in {folder}; next: calmrl-lab report --runs {folder}")
    )
    if record["failed"]:
        raise WorkFailedError(
            f"{len(record['failed'])} runs failed, the first: {record['failed'][0]['error']}", hint="the report lists all"
        )
