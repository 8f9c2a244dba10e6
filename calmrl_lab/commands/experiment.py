"""`calmrl-lab experiment`: many runs from one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer

from calmrl_lab.runtime import console


def register(app: typer.Typer) -> None:
    app.command("experiment")(experiment)


def experiment(
    file: Path = typer.Argument(
        ..., help="Experiment file (YAML), the name of one (calmrl-lab list experiments), or new: write one to start from."
    ),
    store: Path | None = typer.Option(None, help="Store to run on. (default: that of the file)"),
    data: str | None = typer.Option(None, help="Which of the data of the file. (default: its first)"),
    runs: Path = typer.Option(
        Path("runs"), help="Folder for the runs; they go into a folder of the file's (and the data's) name there."
    ),
    jobs: int = typer.Option(os.cpu_count() or 1, min=1, help="Runs at a time."),
    assign: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Change a setting of the file, as common.epochs=5."
    ),
    engine: str = typer.Option("local", help="local, or ray for a cluster."),
    out: Path = typer.Option(Path("experiment.yaml"), help="File that new writes."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the plan and stop."),
    measure: bool = typer.Option(
        False, "--measure", help="With --dry-run: time a short run of each method of which no run has finished."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the outcome as JSON."),
) -> None:
    """Run every method of an experiment file with every seed; finished runs are skipped, failed ones reported.

    Example: calmrl-lab experiment experiments/demo.yaml

    Example: calmrl-lab experiment table3 --data openmoji --dry-run

    Example: calmrl-lab experiment new --store stores/mine.zarr --out mine.yaml
    """
    from calmrl_lab.errors import WorkFailedError
    from calmrl_lab.experiments.loading import read_experiment
    from calmrl_lab.experiments.plan import in_words, plan
    from calmrl_lab.experiments.published import find
    from calmrl_lab.experiments.required_stores import absent_stores, refuse_absent_stores
    from calmrl_lab.experiments.runner import run_experiment

    if file == Path("new"):
        _write_first(store, out)
        return
    file = find(file)
    asked = read_experiment(file, [*([f"store={store}"] if store is not None else []), *assign], data)
    folder = runs / (file.stem if asked.data is None else f"{file.stem}-{asked.data}")
    if asked.stand_in:
        console.note(asked.stand_in)
    if dry_run:
        rows = plan(asked, folder, measure)
        console.emit([vars(row) for row in rows], as_json, lambda: _print_plan(rows, jobs, absent_stores(asked)))
        return
    refuse_absent_stores(asked)
    console.note(in_words(plan(asked, folder), jobs))
    record = run_experiment(asked, folder, jobs, engine)
    failed = {row["run"] for row in record["failed"]}
    names = [name for method in record["methods"] for name in method["runs"]]
    made = sum(name not in failed and (folder / name / "scores.parquet").is_file() for name in names)
    console.emit(
        record,
        as_json,
        lambda: console.out.print(f"{made} run{'s' if made != 1 else ''} in {folder}; next: calmrl-lab report --runs {folder}"),
    )
    if record["failed"]:
        raise WorkFailedError(
            f"{len(record['failed'])} runs failed, the first: {record['failed'][0]['error']}", hint="the report lists all"
        )


def _write_first(store: Path | None, out: Path) -> None:
    from calmrl_lab.errors import CalmrlError
    from calmrl_lab.experiments.published import write_first
    from calmrl_lab.store import FeatureStore

    if store is None:
        raise CalmrlError(
            "a new experiment needs a store to start from", hint="calmrl-lab experiment new --store stores/mine.zarr"
        )
    written = write_first(FeatureStore.open(store), out)
    console.out.print(f"written to {written}; next: calmrl-lab experiment {written} --dry-run", markup=False, soft_wrap=True)


def _print_plan(rows: list[Any], jobs: int, absent: list[str]) -> None:
    from calmrl_lab.experiments.plan import in_words
    from calmrl_lab.experiments.required_stores import making

    shown = console.table()
    for heading in ("run", "what", "core-seconds"):
        shown.add_column(heading, justify="right" if heading == "core-seconds" else "left", overflow="fold")
    for row in rows:
        shown.add_row(row.run, row.what, "?" if row.seconds is None else f"{'' if row.measured else '~'}{row.seconds:.0f}")
    console.out.print(shown)
    for store in absent:
        console.out.print(f"{store} is not there yet: {making(store)}", soft_wrap=True, markup=False)
    console.out.print(in_words(rows, jobs), soft_wrap=True)
