"""Runs of an experiment: made, skipped where they are finished, several at a time, failures kept apart."""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from calmrl_lab import console
from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.experiments import Probes
from calmrl_lab.registry import nearest
from calmrl_lab.runs import Run, write_atomically
from calmrl_lab.watching import watched

ENGINES = ("local", "ray")
# One thread a process: runs are the parallelism, and their numbers do not depend on how many go at once.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# What became of a run: {} or its failure (run, label, error, traceback).
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One run to make: train, and evaluate unless it only serves to choose."""

    path: Path
    config: TrainConfig
    label: str
    split: str | None
    directions: tuple[tuple[str, str], ...] = ()
    probes: Probes | None = None

    def _files(self) -> list[str]:
        """What evaluation leaves in the run directory."""
        names = ["scores.parquet"] if self.split is not None else []
        if self.probes is not None:
            names += ["curves.parquet"] if self.probes.queries else []
            names += ["classification.parquet"] if self.probes.label is not None else []
        return names

    def finished(self) -> bool:
        """True if the directory holds this very run, whole, on a store that has not changed since."""
        try:
            run = Run.open(self.path)
            if run.config != self.config:
                return False
            digest = run.summary["store"]["digest"]
        except (CalmrlError, KeyError):
            return False
        if not all((self.path / name).is_file() for name in self._files()) or not self._scored():
            return False
        return digest == _digest(self.config.store)

    def _scored(self) -> bool:
        """Whether the directions that are asked for are those that were ranked."""
        if self.split is None or not self.directions:
            return True
        try:
            ranked = json.loads((self.path / "evaluation.json").read_text(encoding="utf-8"))["directions"]
        except (OSError, ValueError, KeyError):
            return False
        return [(row["query"], row["gallery"]) for row in ranked] == list(self.directions)


def _digest(store: str, _known: dict[str, str] = {}) -> str:  # noqa: B006
    if store not in _known:
        from calmrl_lab.store import FeatureStore

        _known[store] = FeatureStore.open(store).digest
    return _known[store]


# Seconds between two looks at whether the experiment is still there.
_LOOK = 0.5


def single_thread() -> None:
    """What a worker process does before its first run."""
    import torch

    torch.set_num_threads(1)
    console.err.quiet = True


def begin_worker() -> None:
    """What a process of a pool does first: it must not go on writing runs that a resumed experiment makes again."""
    single_thread()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process once its parent has gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def perform(job: Job) -> Outcome:
    """Runs in a worker process. Returns {} or the error of the run, so that one failure never stops the others."""
    from calmrl_lab.evaluation import evaluate
    from calmrl_lab.training import train

    started = time.monotonic()
    (job.path / "error.json").unlink(missing_ok=True)
    try:
        run = train(job.config, job.path)
        if job.split is not None:
            run.write_json("summary.json", {**run.summary, "method": job.label})
            evaluate(run, list(job.directions) or None, split=job.split)
            _probe(run, job.probes, job.split)
        # Beside the seconds of training: what the next plan counts with.
        run.write_json("summary.json", {**run.summary, "seconds_in_all": round(time.monotonic() - started, 2)})
        return {}
    except Exception as error:  # whatever it was, it is this run's failure and goes into the report
        message = error.message if isinstance(error, CalmrlError) else f"{type(error).__name__}: {error}"
        failure = {"run": job.path.name, "label": job.label, "error": message, "traceback": traceback.format_exc()}
        job.path.mkdir(parents=True, exist_ok=True)
        write_atomically(job.path / "error.json", json.dumps(failure, indent=2).encode())
        return failure


def _probe(run: Run, probes: Probes | None, split: str) -> None:
    if probes is None:
        return
    if probes.queries:
        from calmrl_lab.curves import run_curves

        run_curves(run, queries=[name for name in probes.queries if name in run.summary["modalities"]], split=split)
    if probes.label is not None:
        from calmrl_lab.classification import classify_run

        classify_run(run, probes.label, split=split)


def check_engine(engine: str) -> None:
    """CalmrlError for an engine that there is not, or whose package is not installed."""
    if engine not in ENGINES:
        raise CalmrlError(f"unknown engine '{engine}'{nearest(engine, list(ENGINES))}", hint=f"known: {', '.join(ENGINES)}")
    if engine == "ray":
        from calmrl_lab.jobs_on_ray import require_ray

        require_ray()


def make_runs(jobs: Sequence[Job], workers: int, title: str, engine: str = "local") -> list[Outcome]:
    """Make what is not finished, `workers` at a time (on Ray: as many as the cluster has room for); the failures."""
    todo = [job for job in jobs if not job.finished()]
    if len(todo) < len(jobs):
        console.note(f"{title}: {len(jobs) - len(todo)} of {len(jobs)} runs are finished already")
    failures = []
    with watched(title, todo) as ticker:
        for job, failure in _outcomes(todo, workers, engine):
            if failure:
                failures.append(failure)
                console.note(f"failed: {job.path.name}: {failure['error']}")
            ticker.advance(1, job.path.name)
    return failures


def _outcomes(todo: Sequence[Job], workers: int, engine: str) -> Iterator[tuple[Job, Outcome]]:
    if not todo:
        return
    if engine == "ray":
        from calmrl_lab.jobs_on_ray import outcomes_on_ray

        yield from outcomes_on_ray(todo, workers)
        return
    yield from outcomes_here(todo, workers)


def outcomes_here(todo: Sequence[Job], workers: int, work: Callable[[Job], Outcome] = perform) -> Iterator[tuple[Job, Outcome]]:
    """What became of each run in processes of this machine, in the order in which they end.

    A worker that dies (killed for memory, say) takes its pool with it: what was under way is then made again alone, and only a run that
    dies alone has failed.
    """
    os.environ.update(ONE_THREAD)
    rest = list(todo)
    while rest:
        left = yield from _in_one_pool(rest, workers, work)
        # Runs start in their order, so the first of those without an outcome are the ones that were under way.
        for job in left[:workers]:
            if (yield from _in_one_pool([job], 1, work)):
                yield job, died(job, "it was killed, or ran out of memory")
        rest = left[workers:]


def _in_one_pool(
    todo: Sequence[Job], workers: int, work: Callable[[Job], Outcome]
) -> Generator[tuple[Job, Outcome], None, list[Job]]:
    """Yields what became of the runs; returns those that have no outcome because a worker died."""
    with ProcessPoolExecutor(min(workers, len(todo)), mp_context=get_context("spawn"), initializer=begin_worker) as pool:
        waiting: dict[Future[Outcome], Job] = {}
        broken = False
        try:
            waiting |= {pool.submit(work, job): job for job in todo}
            while waiting and not broken:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in [future for future in waiting if future in done]:
                    try:
                        outcome = future.result()
                    except BrokenProcessPool:
                        broken = True
                        continue
                    except Exception as error:  # what a worker sent could not be read
                        outcome = died(waiting[future], error)
                    yield waiting.pop(future), outcome
        except BrokenProcessPool:  # before all were handed out
            return list(waiting.values()) or list(todo)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return list(waiting.values())


def died(job: Job, error: object) -> Outcome:
    """The failure of a run whose worker process is gone."""
    return {"run": job.path.name, "label": job.label, "error": f"the worker died: {error}"}
