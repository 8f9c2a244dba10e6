"""What the commands print: results on standard output, progress and notes on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

out = Console(soft_wrap=False, highlight=False)
err = Console(stderr=True, highlight=False)


# Set by --quiet: neither notes nor progress; errors are printed all the same.
quiet = False


def listed(parts: Sequence[str]) -> str:
    """Joined by commas and "and".

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def note(message: str) -> None:
    """A line for the person watching; never part of the result. In a log it stays one line, however long."""
    if quiet:
        return
    err.print(message, markup=False, soft_wrap=not err.is_terminal)


def emit(payload: Any, as_json: bool, render: Callable[[], None]) -> None:
    """The result of a command: `payload` as one JSON document (null for numbers that are none), or what `render` prints."""
    if as_json:
        sys.stdout.write(json.dumps(_finite(payload), indent=2, ensure_ascii=False, default=str, allow_nan=False) + "\n")
    else:
        render()


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(**options: Any) -> Table:
    """An empty table without lines, one space between columns: tables of results fit a window of 80 columns."""
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left", **options)


def show(table: Table) -> None:
    """A table at its full width, its title on a line above: a narrow window folds lines, and no number is cut short."""
    wide = Console(file=out.file, width=10_000, highlight=False, force_terminal=out.is_terminal)
    if table.title:
        wide.print(table.title, style="table.title")
        table.title = None
    wide.width = wide.measure(table).maximum
    wide.print(table)


def print_table(frame: pd.DataFrame, columns: dict[str, str], title: str) -> None:
    shown = table(title=title)
    for heading, form in columns.items():
        shown.add_column(heading.replace("_", " "), justify="left" if form == "{}" else "right")
    for row in frame.to_dict("records"):
        shown.add_row(*(form.format(_plain(row[heading])) for heading, form in columns.items()))
    show(shown)


def _plain(value: Any) -> Any:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
