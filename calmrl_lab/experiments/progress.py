"""How far the runs of an experiment are: on a terminal one line per run that is under way, and one for all of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calmrl_lab.runtime import console

if TYPE_CHECKING:
    from calmrl_lab.experiments.job import Job

# Seconds between two looks at the logs of the runs.
_PAUSE = 1.0


@contextmanager
def watched(title: str, jobs: Sequence[Job]) -> Iterator[Any]:
    """Progress over `jobs`; the yielded object has `advance(1, name)`, called when a run has ended.

    On a terminal every run that is under way has a line with its epoch and validation score, read from its metrics.jsonl: so it does not matter
    in which process or on which machine it goes on. Elsewhere a plain line says how many have ended.
    """
    if not console.err.is_terminal:
        with console.progress(title, len(jobs)) as ticker:
            yield ticker
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    words = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*words, TextColumn("{task.fields[detail]}"), console=console.err) as bars:
        lines = _Lines(bars, title, jobs)
        looking = threading.Thread(target=lines.follow, daemon=True)
        looking.start()
        try:
            yield lines
        finally:
            lines.stop.set()
            looking.join()


class _Lines:
    """The lines of a rich display; `advance` ends one, `follow` moves the others."""

    def __init__(self, bars: Any, title: str, jobs: Sequence[Job]) -> None:
        self.bars = bars
        self.total = bars.add_task(title, total=len(jobs), detail="")
        self.open = {job.path.name: job for job in jobs}
        # What lies in a folder from an earlier, killed attempt is no progress of this one.
        self.before = {name: _changed(job.path) for name, job in self.open.items()}
        self.shown: dict[str, Any] = {}
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def advance(self, count: int = 1, detail: str = "") -> None:
        with self.lock:
            self.open.pop(detail, None)
            if detail in self.shown:
                self.bars.remove_task(self.shown.pop(detail))
            self.bars.update(self.total, advance=count, detail="")

    def follow(self) -> None:
        while not self.stop.wait(_PAUSE):
            self.look()

    def look(self) -> None:
        """Read the logs of the runs that have not ended."""
        with self.lock:
            for name, job in self.open.items():
                if _changed(job.path) == self.before[name]:
                    continue
                epochs = job.config.epochs + (job.config.warm_up_epochs if job.config.warm_up else 0)
                if name not in self.shown:
                    self.shown[name] = self.bars.add_task(f"  {name}", total=epochs, detail="")
                epoch, score = last_epoch(job.path)
                self.bars.update(self.shown[name], completed=epoch, detail=f"validation MRR {score:.3f}")


def _changed(path: Path) -> int:
    try:
        return (path / "metrics.jsonl").stat().st_mtime_ns
    except OSError:
        return 0


def last_epoch(path: Path) -> tuple[int, float]:
    """(epochs done, validation score) by the last whole line of metrics.jsonl; (0, 0.0) if there is none."""
    try:
        lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0, 0.0
    for line in reversed(lines):
        try:
            row = json.loads(line)
            return int(row["epoch"]), float(row["validation_mrr"])
        except (ValueError, KeyError):
            continue
    return 0, 0.0
