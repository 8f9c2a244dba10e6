"""The runs of an experiment carried out by one of the engines: worker processes or Ray."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from calmrl_lab.experiments.job import Job, Outcome
from calmrl_lab.experiments.process_pool import outcomes_here
from calmrl_lab.experiments.progress import watched
from calmrl_lab.registry import known
from calmrl_lab.runtime import console
from calmrl_lab.runtime.signals import stopping_gently

ENGINES = ("local", "ray")


def check_engine(engine: str) -> None:
    """CalmrlError for an engine that there is not, whose package is not installed, or whose cluster does not answer."""
    known(engine, ENGINES, "unknown engine")
    if engine == "ray":
        from calmrl_lab.runtime.ray_cluster import check_cluster

        check_cluster()


def make_runs(jobs: Sequence[Job], workers: int, title: str, engine: str = "local") -> list[Outcome]:
    """Make what is not finished, `workers` at a time (on Ray: as many as the cluster has room for); the failures.

    After Ctrl-C or SIGTERM the runs under way are finished and no other is begun; then KeyboardInterrupt or SystemExit is raised.
    """
    todo = [job for job in jobs if not job.finished()]
    if len(todo) < len(jobs):
        console.note(f"{title}: {len(jobs) - len(todo)} of {len(jobs)} runs are finished already")
    failures = []
    with stopping_gently("the runs under way") as stop, watched(title, todo) as ticker:
        for job, failure in _outcomes(todo, workers, engine, stop):
            if failure:
                failures.append(failure)
                console.note(f"failed: {job.path.name}: {failure['error']}")
            ticker.advance(1, job.path.name)
    return failures


def _outcomes(todo: Sequence[Job], workers: int, engine: str, stop: threading.Event) -> Iterator[tuple[Job, Outcome]]:
    if not todo:
        return
    if engine == "ray":
        from calmrl_lab.experiments.ray_tasks import outcomes_on_ray

        yield from outcomes_on_ray(todo, workers, stop)
        return
    yield from outcomes_here(todo, workers, stop)
