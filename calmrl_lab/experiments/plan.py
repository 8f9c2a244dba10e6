"""The plan of an experiment: the runs it would make, and about how long they would take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.experiments.job import Job
from calmrl_lab.experiments.runner import best_of, final, scored_candidates, trial
from calmrl_lab.experiments.spec import Experiment, Method, candidates, run_config
from calmrl_lab.runs.run import Run
from calmrl_lab.store import FeatureStore

# One core, measured on openmoji (4 modalities) and the digits (6): an item of a pass costs this much a pair of modalities, a run this much besides.
_SECONDS_A_PAIR = 12e-6
_SECONDS_A_RUN = 2.0


@dataclass(frozen=True)
class Planned:
    """A run that an experiment would make: its folder, why, and the core-seconds it needs (0 if it is finished); `measured` where finished
    runs of the same method say so, guessed from items, passes and modalities elsewhere; None where a store is not there to be counted."""

    run: str
    what: str
    seconds: float | None
    measured: bool


def plan(experiment: Experiment, folder: Path) -> list[Planned]:
    """One entry per run that `run_experiment` would make or skip; methods with a grid show their candidates first."""
    rows: list[Planned] = []
    for method in experiment.methods:
        options = candidates(method)
        seconds, measured = _cost(experiment, folder, method)
        chosen: dict[str, Any] | None = options[0]
        if len(options) > 1:
            trials = [(o, [trial(experiment, folder, method, o, seed) for seed in experiment.tuning_seeds]) for o in options]
            rows += [
                _planned(job, f"choose: {_changed(method, settings)}", seconds, measured)
                for settings, jobs in trials
                for job in jobs
            ]
            scored = scored_candidates(trials)
            # What is chosen is known once every candidate has been tried.
            chosen = best_of(scored) if len(scored) == len(options) else None
        if chosen is None:
            names = [str(folder / f"{method.name}-s{seed}") for seed in experiment.seeds]
            rows += [Planned(name, "train with the chosen settings, and evaluate", seconds, measured) for name in names]
            continue
        for seed in experiment.seeds:
            job = final(experiment, folder, method, run_config(experiment, method, chosen, seed, method.name))
            rows.append(_planned(job, "train and evaluate", seconds, measured))
    return rows


def _planned(job: Job, what: str, seconds: float | None, measured: bool) -> Planned:
    return Planned(str(job.path), "finished", 0.0, True) if job.finished() else Planned(str(job.path), what, seconds, measured)


def _changed(method: Method, settings: dict[str, Any]) -> str:
    """What this candidate sets among the keys of the grid."""

    def found(key: str) -> Any:
        place: Any = settings
        for part in key.split("."):
            place = place[part]
        return place

    return ", ".join(f"{key}={found(key)}" for key in method.grid)


def _cost(experiment: Experiment, folder: Path, method: Method) -> tuple[float | None, bool]:
    """Core-seconds of one run of `method`, and whether finished runs say so."""
    taken = []
    for path in [*folder.glob(f"{method.name}-s*"), *folder.glob(f"tuning/{method.name}-*-s*")]:
        try:
            summary = Run.open(path).summary
            taken.append(float(summary.get("seconds_in_all", summary["seconds"])))
        except (CalmrlError, KeyError):
            continue
    if taken:
        return sum(taken) / len(taken), True
    config = run_config(experiment, method, candidates(method)[0], experiment.seeds[0], method.name)
    return _guess(config), False


def _guess(config: TrainConfig) -> float | None:
    stores = [config.store, *config.mix]
    try:
        counts = [int((FeatureStore.open(store).split == "train").sum()) for store in stores]
        warm = int((FeatureStore.open(config.warm_up).split == "train").sum()) if config.warm_up else 0
        k = len(config.modalities or FeatureStore.open(config.store).modalities)
    except CalmrlError:
        return None
    shown = sum(weight * count for weight, count in zip([1.0, *config.mix.values()], counts, strict=True))
    seen = shown * config.epochs + warm * config.warm_up_epochs
    return _SECONDS_A_RUN + _SECONDS_A_PAIR * seen * k * (k - 1) / 2
