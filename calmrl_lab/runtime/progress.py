"""Progress of long work: what is being done, how far, at which rate and how long still, as bars on a terminal and as plain lines elsewhere.

Work says where it is by `progress`, in any function; nothing is printed unless somebody asked for it by `shown`, as the command line does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from calmrl_lab.runtime import console

# Seconds after which work is worth a word, seconds between two plain lines, and between two looks at how far it is.
FIRST, EVERY, LOOK = 2.0, 10.0, 0.25

Value = TypeVar("Value")


class Task:
    """One piece of work under way: `done` of `total` (None: not known beforehand) `unit`, begun at `began` (seconds, monotonic).

    `parts` are pieces of it that go on at the same time elsewhere; a terminal has a bar for each. `left`: the seconds that are left, where
    the work itself can estimate that better than its rate so far.
    """

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.detail = 0, ""
        self.left: float | None = None
        self.began = time.monotonic()
        self.parts: list[Task] = []

    def advance(self, count: int = 1, detail: str = "") -> None:
        """`count` more are done; `detail` is a remark on the last of them."""
        self.done += count
        self.detail = detail

    def words(self, now: float) -> str:
        """One line: label, count, rate, time taken and time left."""
        elapsed = max(now - self.began, 1e-9)
        said = [f"{self.label}: {elapsed:.0f} s"]
        if self.total is not None or self.done:
            count = f"{self.done}/{self.total}" if self.total is not None else str(self.done)
            rate = self.done / elapsed
            said = [f"{self.label}: {count} {self.unit}", f"{rate:.3g}/s", f"{elapsed:.0f} s"]
            left = self.left
            if left is None and self.total is not None and rate:
                left = max(self.total - self.done, 0) / rate
            if left is not None:
                said[-1] += f", {left:.0f} s left"
        return "  ".join([*said, *([self.detail] if self.detail else [])])


class _Display(Protocol):
    def draw(self, tasks: Sequence[Task], now: float) -> None: ...

    def close(self) -> None: ...


class _Lines:
    """Plain lines: the innermost work, and what it belongs to, once it takes two seconds and then at most every ten."""

    # When the last line was printed: commands of many short pieces of work stay quiet too.
    last = -float("inf")

    def draw(self, tasks: Sequence[Task], now: float) -> None:
        # A command that only loads libraries on a busy machine is not worth a word.
        first = FIRST if len(tasks) > 1 else 2 * FIRST
        if now - tasks[0].began < first or now - _Lines.last < EVERY:
            return
        _Lines.last = now
        shown = tasks if len(tasks) < 3 else (tasks[0], tasks[-1])
        console.note("; ".join(task.words(now) for task in shown))

    def close(self) -> None:
        pass


class _Bars:
    """A bar for each piece of work under way that has taken a second."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        words = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}")
        times = TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[detail]}")
        self._bars = Progress(*words, *times, console=console.err, auto_refresh=False, transient=True)
        self._rows: dict[Task, Any] = {}
        self._started = False

    def draw(self, tasks: Sequence[Task], now: float) -> None:
        rows = [(depth, one) for depth, task in enumerate(tasks) for one in (task, *task.parts)]
        for gone in self._rows.keys() - {task for _, task in rows}:
            self._bars.remove_task(self._rows.pop(gone))
        for depth, task in rows:
            if now - task.began < FIRST / 2:
                continue
            if not self._started:
                self._bars.start()
                self._started = True
            fields: dict[str, Any] = {"count": _count(task, now), "detail": task.detail}
            if task not in self._rows:
                self._rows[task] = self._bars.add_task("  " * depth + task.label, total=task.total, **fields)
            self._bars.update(self._rows[task], completed=task.done, **fields)
        if self._started:
            self._bars.refresh()

    def close(self) -> None:
        if self._started:
            self._bars.stop()


def _count(task: Task, now: float) -> str:
    if task.total is None and not task.done:
        return ""
    count = f"{task.done}/{task.total}" if task.total is not None else str(task.done)
    return f"{count} {task.unit}, {task.done / max(now - task.began, 1e-9):.3g}/s"


class _Watcher:
    """Looks at the work under way from a thread of its own, so that one long step is told of too."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        display: _Display = _Bars() if console.err.is_terminal else _Lines()
        try:
            while not self._ended.wait(LOOK):
                if tasks := list(self.tasks):
                    display.draw(tasks, time.monotonic())
        finally:
            display.close()


_asked = False
_watcher: _Watcher | None = None


@contextmanager
def shown(yes: bool = True) -> Iterator[None]:
    """Progress of everything in the body is shown on standard error, or with `yes=False` is not; without it, Python code is silent.

    >>> with shown():
    ...     for number in tracked(range(3), "counting", unit="numbers"):
    ...         pass
    """
    global _asked
    before, _asked = _asked, yes
    try:
        yield
    finally:
        _asked = before


@contextmanager
def paused() -> Iterator[None]:
    """Nothing is shown in the body, also not of the work around it: it waits for somebody else."""
    around = [] if _watcher is None else list(_watcher.tasks)
    for task in around:
        _watcher.tasks.remove(task)  # type: ignore[union-attr]
    try:
        with shown(False):
            yield
    finally:
        if _watcher is not None:
            _watcher.tasks[:0] = around


@contextmanager
def progress(label: str, total: int | None = None, unit: str = "items") -> Iterator[Task]:
    """Work under way: `label` says what is being done, to `total` of `unit` (None where that is not known); the yielded `Task` is advanced.

    Inside of other work it is shown under it. Costs microseconds, and prints nothing before it has taken two seconds.
    """
    global _watcher
    task, mine = Task(label, total, unit), False
    if _asked and not (console.err.quiet or console.quiet) and threading.current_thread() is threading.main_thread():
        if _watcher is None:
            _watcher, mine = _Watcher(), True
            _watcher.start()
        _watcher.tasks.append(task)
    watcher = _watcher if _watcher is not None and task in _watcher.tasks else None
    try:
        yield task
    finally:
        if watcher is not None:
            watcher.tasks.remove(task)
            if mine:
                _watcher = None
                watcher.stop()


def tracked(values: Iterable[Value], label: str, total: int | None = None, unit: str = "items") -> Iterator[Value]:
    """`values`, one after the other, as work under way; `total` defaults to their number where they have one."""
    if total is None and isinstance(values, Sized):
        total = len(values)
    with progress(label, total, unit) as task:
        for value in values:
            yield value
            task.advance()
