"""Progress of an experiment: one task for all of its runs, and a part of it for each run in progress."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from calmrl_lab.runtime.progress import Task, progress

if TYPE_CHECKING:
    from calmrl_lab.experiments.job import Job

# Seconds between two looks at the logs of the runs.
_PAUSE = 1.0


@contextmanager
def watched(title: str, jobs: Sequence[Job]) -> Iterator[Watched]:
    """Progress over `jobs`; the yielded object has `advance(1, name)`, called when a run has ended.

    Every run that is under way has a bar with its epoch and validation score, read from its metrics.jsonl: so it does not matter in which process
    or on which machine it goes on.
    """
    with progress(title, len(jobs), "runs") as task:
        runs = Watched(task, jobs)
        looking = threading.Thread(target=runs.follow, daemon=True)
        looking.start()
        try:
            yield runs
        finally:
            runs.stop.set()
            looking.join()


class Watched:
    """The runs of an experiment as parts of one task: `advance` ends one, `follow` moves the others."""

    def __init__(self, task: Task, jobs: Sequence[Job]) -> None:
        self.task = task
        self.open = {job.path.name: job for job in jobs}
        # What lies in a folder from an earlier, killed attempt is no progress of this one.
        self.before = {name: _changed(job.path) for name, job in self.open.items()}
        self.under_way: dict[str, Task] = {}
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def advance(self, count: int = 1, name: str = "") -> None:
        with self.lock:
            self.open.pop(name, None)
            self.under_way.pop(name, None)
            self.task.parts = list(self.under_way.values())
            self.task.advance(count)

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
                part = self.under_way.setdefault(name, Task(name, epochs, "epochs"))
                part.done, score = last_epoch(job.path)
                part.detail = f"validation MRR {score:.3f}"
            self.task.parts = list(self.under_way.values())


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
