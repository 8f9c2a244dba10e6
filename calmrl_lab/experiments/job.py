"""One run of an experiment as a job: its configuration and its outcome."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.experiments.spec import Probes
from calmrl_lab.runs.run import Run
from calmrl_lab.runtime import console

# One thread per process: runs are the parallelism, and their numbers do not depend on how many go at once.
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
    # Where it is scored, if not on the store that it is trained on.
    score_on: str | None = None

    def _files(self) -> list[str]:
        """What evaluation leaves in the run directory."""
        names = [Run.SCORES] if self.split is not None else []
        if self.probes is not None:
            names += [Run.CURVES] if self.probes.queries else []
            names += [Run.CLASSIFICATION] if self.probes.label is not None else []
        return names

    def asked(self) -> dict[str, Any]:
        """What the result depends on besides the configuration, as it stands in the summary of the run that was made for it."""
        others = (self.config.warm_up, self.score_on)
        stores = [self.config.store, *self.config.mix, *(store for store in others if store)]
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
        files = (*self._files(), *(run.digests(run.SUMMARY) or ()))
        return ranked == run.read_record(run.EVALUATION) and all(run.whole(name) for name in files)


def _digest(store: str) -> str:
    """The digest of a store, read again only if a file of it has been written since."""
    files = Path(store).rglob("*") if not (Path(store) / "digest.json").exists() else [Path(store) / "digest.json"]
    return _read_digest(store, max((file.stat().st_mtime_ns for file in files), default=0))


@lru_cache(maxsize=64)
def _read_digest(store: str, changed: int) -> str:
    from calmrl_lab.store import FeatureStore

    return FeatureStore.open(store).digest


def single_thread() -> None:
    """What a worker process does before its first run."""
    import torch

    torch.set_num_threads(1)
    console.err.quiet = True


def perform(job: Job) -> Outcome:
    """Runs in a worker process. Returns {} or the error of the run, so that one failure never stops the others."""
    from calmrl_lab.evaluation.evaluate import evaluate
    from calmrl_lab.training.train import train

    started, spent = time.monotonic(), time.process_time()
    (job.path / Run.ERROR).unlink(missing_ok=True)
    try:
        asked = job.asked()
        run = train(job.config, job.path, overwrite=True)
        if job.split is not None:
            with run.writing():
                run.amend_summary(method=job.label)
            evaluate(run, list(job.directions) or None, job.score_on, job.split)
            _probe(run, job.probes, job.split, job.score_on)
        # Last: a run that says what it was asked has been made to the end. The seconds are what the next plan counts with.
        with run.writing():
            run.amend_summary(
                asked=asked,
                evaluated=run.read_record(run.EVALUATION),
                seconds_in_all=round(time.monotonic() - started, 2),
                core_seconds=round(time.process_time() - spent, 2),
            )
        return {}
    except Exception as error:  # whatever it was, it is this run's failure and goes into the report
        message = error.message if isinstance(error, CalmrlError) else f"{type(error).__name__}: {error}"
        failure = {"run": job.path.name, "label": job.label, "error": message, "traceback": traceback.format_exc()}
        job.path.mkdir(parents=True, exist_ok=True)
        Run(job.path).write_record(Run.ERROR, failure)
        return failure


def _probe(run: Run, probes: Probes | None, split: str, score_on: str | None) -> None:
    if probes is None:
        return
    if probes.queries:
        from calmrl_lab.evaluation.missing_curves import run_curves

        run_curves(run, queries=[name for name in probes.queries if name in run.summary["modalities"]], split=split)
    if probes.label is not None:
        from calmrl_lab.evaluation.classification import classify_run

        classify_run(run, probes.label, probes.kinds or None, split=split, store=score_on)


def died(job: Job, error: object) -> Outcome:
    """The failure of a run whose worker process is gone."""
    return {"run": job.path.name, "label": job.label, "error": f"the worker died: {error}"}
