"""`calmrl-lab list`: what can be named on the command line."""

from __future__ import annotations

from enum import StrEnum
from importlib import import_module

import typer

from calmrl_lab.runtime import console

_HOME = {
    "objectives": "calmrl_lab.objectives",
    "imputers": "calmrl_lab.imputers",
    "scorers": "calmrl_lab.scorers",
    "encoders": "feature_extractors.encoders",
    "datasets": "feature_extractors.datasets",
}


class Kind(StrEnum):
    """What can be listed."""

    objectives = "objectives"
    imputers = "imputers"
    scorers = "scorers"
    encoders = "encoders"
    datasets = "datasets"


def register(app: typer.Typer) -> None:
    app.command("list")(list_plugins)


def list_plugins(
    kind: Kind = typer.Argument(..., help="What to list."),
    as_json: bool = typer.Option(False, "--json", help="Print as JSON."),
) -> None:
    """List objectives, imputers, scorers, encoders or datasets, those of other packages included.

    Example: calmrl-lab list objectives
    """
    from rich.table import Table

    described = getattr(import_module(_HOME[kind.value]), kind.value).describe()
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, line in described.items():
        table.add_row(f"[bold]{name}[/bold]", line)
    console.emit(described, as_json, lambda: console.out.print(table))
