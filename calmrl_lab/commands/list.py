"""`calmrl-lab list`: what can be named on the command line."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from importlib import import_module

import typer

from calmrl_lab.runtime import console

# Where the description of each kind is found: a registry, or a function.
_HOME = {
    "methods": ("calmrl_lab.methods", "describe"),
    "objectives": ("calmrl_lab.objectives", "objectives"),
    "imputers": ("calmrl_lab.imputers", "imputers"),
    "scorers": ("calmrl_lab.scorers", "scorers"),
    "experiments": ("calmrl_lab.experiments.published", "describe"),
    "encoders": ("feature_extractors.encoders", "encoders"),
    "datasets": ("feature_extractors.datasets", "datasets"),
}
Kind = StrEnum("Kind", [(name, name) for name in _HOME])  # type: ignore[misc]


def register(app: typer.Typer) -> None:
    app.command("list")(list_plugins)


def list_plugins(
    kind: Kind | None = typer.Argument(
        None,
        show_choices=False,
        help="methods, objectives, imputers, scorers, experiments, encoders or datasets. (default: everything)",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print as JSON."),
) -> None:
    """List what can be named in commands and files: methods, imputers and more, those of other packages included.

    Example: calmrl-lab list methods
    """
    if kind is not None:
        lines = _described(kind.value)
        console.emit(lines, as_json, lambda: _print(lines))
        return
    every = {name: _described(name) for name in _HOME}
    console.emit(every, as_json, lambda: _print_all(every))


def _described(kind: str) -> dict[str, str]:
    module, name = _HOME[kind]
    found = getattr(import_module(module), name)
    describe: Callable[[], dict[str, str]] = found if callable(found) else found.describe
    return describe()


def _print_all(every: dict[str, dict[str, str]]) -> None:
    for name, lines in every.items():
        console.out.print(f"[bold underline]{name}[/bold underline]")
        _print(lines)
        console.out.print()


def _print(lines: dict[str, str]) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, line in lines.items():
        table.add_row(f"[bold]{name}[/bold]", line)
    console.out.print(table)
