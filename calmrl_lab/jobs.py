"""Runs of an experiment: made, skipped where they are finished, several at a time, failures kept apart."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from calmrl_lab import console
from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.experiments import Probes
from calmrl_lab.registry import nearest
from calmrl_lab.runs import Run, write_atomically
from calmrl_lab.stopping import stopping_gently
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

    def asked(self) -> dict[str, Any]:
        """What the result depends on besides the configuration, as it stands in the summary of the run that was made for it."""
        stores = [self.config.store, *self.config.mix, *([self.config.warm_up] if self.config.warm_up else [])]
        return {
            "split": self.split,
            "directions": [list(pair) for pair in self.directions],
            "probes": None if self.probes is None else self.probes.model_dump(mode="json", exclude={"seeds"}),
            "stores": {store: _digest(store) for store in stores},
        }

    def finished(self) -> bool:
        """True if the directory holds this very run, whole, as the experiment left it, on stores that have not changed since."""
        try:
            run = Run.open(self.path)
            if run.config != self.config or run.summary.get("asked") != self.asked():
                return False
            ranked = run.summary.get("evaluated")
        except CalmrlError:
            return False
        return all((self.path / name).is_file() for name in self._files()) and ranked == _evaluated(self.path)


def _evaluated(path: Path) -> Any:
    """What was ranked: `calmrl-lab evaluate` may have scored the run in another way since. None where nothing was."""
    try:
        return json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _digest(store: str) -> str:
    """The digest of a store, read again only if a file of it has been written since."""
    files = Path(store).rglob("*") if not (Path(store) / "digest.json").exists() else [Path(store) / "digest.json"]
    return _read_digest(store, max((file.stat().st_mtime_ns for file in files), default=0))


@lru_cache(maxsize=64)
def _read_digest(store: str, changed: int) -> str:
    from calmrl_lab.store import FeatureStore

    return FeatureStore.open(store).digest


# Seconds between two looks at whether the experiment is still there.
_LOOK = 0.5


def single_thread() -> None:
    """What a worker process does before its first run."""
    import torch

    torch.set_num_threads(1)
    console.err.quiet = True


def begin_worker() -> None:
    """What a process of a pool does first: it must not go on writing runs that a resumed experiment makes again.

    Ctrl-C in a terminal reaches every process; what becomes of the run under way is for the parent to say.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
        asked = job.asked()
        run = train(job.config, job.path)
        if job.split is not None:
            run.write_json("summary.json", {**run.summary, "method": job.label})
            evaluate(run, list(job.directions) or None, split=job.split)
            _probe(run, job.probes, job.split)
        # Last: a run that says what it was asked has been made to the end. The seconds are what the next plan counts with.
        known = {"asked": asked, "evaluated": _evaluated(job.path), "seconds_in_all": round(time.monotonic() - started, 2)}
        run.write_json("summary.json", {**run.summary, **known})
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
    """CalmrlError for an engine that there is not, whose package is not installed, or whose cluster does not answer."""
    if engine not in ENGINES:
        raise CalmrlError(f"unknown engine '{engine}'{nearest(engine, list(ENGINES))}", hint=f"known: {', '.join(ENGINES)}")
    if engine == "ray":
        from calmrl_lab.ray_cluster import check_cluster

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
        from calmrl_lab.jobs_on_ray import outcomes_on_ray

        yield from outcomes_on_ray(todo, workers, stop)
        return
    yield from outcomes_here(todo, workers, stop)


def outcomes_here(
    todo: Sequence[Job], workers: int, stop: threading.Event, work: Callable[[Job], Outcome] = perform
) -> Iterator[tuple[Job, Outcome]]:
    """What became of each run in processes of this machine, in the order in which they end; once `stop` is set no further run begins.

    A worker that dies (killed for memory, say) takes its pool with it: what was under way is then made again alone, and only a run that
    dies alone has failed.
    """
    os.environ.update(ONE_THREAD)
    rest = deque(todo)
    while rest and not stop.is_set():
        for job in (yield from _in_one_pool(rest, workers, stop, work)):
            if (yield from _in_one_pool(deque([job]), 1, stop, work)):
                yield job, died(job, "it was killed, or ran out of memory")


def _in_one_pool(
    rest: deque[Job], workers: int, stop: threading.Event, work: Callable[[Job], Outcome]
) -> Generator[tuple[Job, Outcome], None, list[Job]]:
    """Takes runs from the front of `rest` and yields what became of them, until none is left, `stop` is set or a worker has died; returns
    the runs that were under way when one died."""
    waiting: dict[Future[Outcome], Job] = {}
    others = set(active_children())
    with ProcessPoolExecutor(min(workers, len(rest)), mp_context=get_context("spawn"), initializer=begin_worker) as pool:
        try:
            while waiting or (rest and not stop.is_set()):
                # No more than can run: what is handed to a pool cannot be taken back.
                while rest and len(waiting) < workers and not stop.is_set():
                    waiting[pool.submit(work, rest[0])] = rest[0]
                    rest.popleft()
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                broken = False
                for future in done:
                    try:
                        outcome = future.result()
                    except BrokenProcessPool:
                        broken = True
                        continue
                    except Exception as error:  # what a worker sent could not be read
                        outcome = died(waiting[future], error)
                    yield waiting.pop(future), outcome
                if broken:
                    return list(waiting.values())
        except BrokenProcessPool:  # while runs were handed out
            return list(waiting.values()) or [rest.popleft()]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(active_children()) - others:
                worker.terminate()
            raise
    return []


def died(job: Job, error: object) -> Outcome:
    """The failure of a run whose worker process is gone."""
    return {"run": job.path.name, "label": job.label, "error": f"the worker died: {error}"}
