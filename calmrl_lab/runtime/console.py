"""What the commands print: results on standard output, progress and notes on standard error."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

out = Console(soft_wrap=False, highlight=False)
err = Console(stderr=True, highlight=False)


def note(message: str) -> None:
    """A line for the person watching; never part of the result. In a log it stays one line, however long."""
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


def show(table: Table) -> None:
    """A table at its full width, its title on a line above: a narrow window folds lines, and no number is cut short."""
    wide = Console(file=out.file, width=10_000, highlight=False, force_terminal=out.is_terminal)
    if table.title:
        wide.print(table.title, style="table.title")
        table.title = None
    wide.width = wide.measure(table).maximum
    wide.print(table)


class _PlainTicker:
    """Progress for logs: a first line after two seconds, then one at most every ten, and a last one."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done = label, total, 0
        self.started = time.monotonic()
        self.speaks_at = self.started + 2.0

    def advance(self, count: int = 1, detail: str = "", left: float | None = None) -> None:
        self.done += count
        now = time.monotonic()
        if self.done >= self.total or now >= self.speaks_at:
            self.speaks_at = now + 10.0
            elapsed = max(now - self.started, 1e-9)
            rate = self.done / elapsed
            if left is None:
                left = (self.total - self.done) / rate if rate else 0.0
            tail = f"  {detail}" if detail else ""
            note(f"{self.label}: {self.done}/{self.total}  {rate:.1f}/s  {elapsed:.0f} s, {left:.0f} s left{tail}")


class _RichTicker:
    def __init__(self, progress: Any, task: Any) -> None:
        self._progress, self._task = progress, task

    def advance(self, count: int = 1, detail: str = "", left: float | None = None) -> None:
        detail = detail or (f"{left:.0f} s left" if left is not None else "")
        self._progress.update(self._task, advance=count, detail=detail)


@contextmanager
def progress(label: str, total: int) -> Iterator[_PlainTicker | _RichTicker]:
    """A progress display with rate and time left; plain lines when standard error is not a terminal.

    The yielded object has `advance(count=1, detail="", left=None)`; `left` are the seconds that are left, if the caller knows better than the rate.
    """
    if not err.is_terminal:
        yield _PlainTicker(label, total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=err) as bars:
        yield _RichTicker(bars, bars.add_task(label, total=total, detail=""))


def print_table(table: pd.DataFrame, columns: dict[str, str], title: str) -> None:
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for heading, form in columns.items():
        shown.add_column(heading.replace("_", " "), justify="left" if form == "{}" else "right")
    for row in table.to_dict("records"):
        shown.add_row(*(form.format(_plain(row[heading])) for heading, form in columns.items()))
    show(shown)


def _plain(value: Any) -> Any:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
