"""The plan of an experiment: the runs it would make, and about how long they would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calmrl_lab.experiments.cost import Cost, by_short_runs, guessed, of_finished
from calmrl_lab.experiments.job import Job
from calmrl_lab.experiments.runner import best_of, final, scored_candidates, trial
from calmrl_lab.experiments.spec import Experiment, Method, candidates, run_config


@dataclass(frozen=True)
class Planned:
    """A run that an experiment would make: its folder, why, and the core-seconds and bytes it needs (0 if it is finished); `measured` by finished
    runs of the same method or short ones, guessed from items, passes, modalities and dimensions elsewhere; None where a store is not there to be counted."""

    run: str
    what: str
    seconds: float | None
    measured: bool
    bytes: float | None = None


def plan(experiment: Experiment, folder: Path, measure: bool = False) -> list[Planned]:
    """One entry per run that `run_experiment` would make or skip; methods with a grid show their candidates first.

    With `measure`, methods without a finished run are measured by short runs (`by_short_runs`).
    """
    rows: list[Planned] = []
    for method in experiment.methods:
        options = candidates(method)
        cost = _cost(experiment, folder, method, measure)
        chosen: dict[str, Any] | None = options[0]
        if len(options) > 1:
            trials = [(o, [trial(experiment, folder, method, o, seed) for seed in experiment.tuning_seeds]) for o in options]
            rows += [_planned(job, f"choose: {_changed(method, settings)}", cost) for settings, jobs in trials for job in jobs]
            scored = scored_candidates(trials)
            # What is chosen is known once every candidate has been tried.
            chosen = best_of(scored) if len(scored) == len(options) else None
        if chosen is None:
            names = [str(folder / f"{method.name}-s{seed}") for seed in experiment.seeds]
            rows += [
                Planned(name, "train with the chosen settings, and evaluate", cost.seconds, cost.measured, cost.bytes)
                for name in names
            ]
            continue
        for seed in experiment.seeds:
            job = final(experiment, folder, method, run_config(experiment, method, chosen, seed, method.name))
            rows.append(_planned(job, "train and evaluate", cost))
    return rows


def _planned(job: Job, what: str, cost: Cost) -> Planned:
    if job.finished():
        return Planned(str(job.path), "finished", 0.0, True, 0.0)
    return Planned(str(job.path), what, cost.seconds, cost.measured, cost.bytes)


def _changed(method: Method, settings: dict[str, Any]) -> str:
    """What this candidate sets among the keys of the grid."""

    def found(key: str) -> Any:
        place: Any = settings
        for part in key.split("."):
            place = place[part]
        return place

    return ", ".join(f"{key}={found(key)}" for key in method.grid)


def _cost(experiment: Experiment, folder: Path, method: Method, measure: bool) -> Cost:
    """What one run of `method` costs."""
    paths = [*folder.glob(f"{method.name}-s*"), *folder.glob(f"tuning/{method.name}-*-s*")]
    if (found := of_finished(paths)) is not None:
        return found
    config = run_config(experiment, method, candidates(method)[0], experiment.seeds[0], method.name)
    return by_short_runs(config, experiment.split) if measure else guessed(config, experiment.split)


def in_words(rows: Sequence[Planned], jobs: int) -> str:
    """How many runs there are to make, how long they take with `jobs` at a time, and what they will weigh."""
    todo = [row for row in rows if row.what != "finished"]
    begin = f"{len(todo)} of {len(rows)} runs to make"
    if any(row.seconds is None for row in todo):
        return f"{begin}; what they cost is known once the stores are there"
    total, size = sum(row.seconds or 0 for row in todo), sum(row.bytes or 0 for row in todo)
    guesses = (
        "" if all(row.measured for row in todo) else " (~: guessed from items and passes; --dry-run --measure measures it)"
    )
    return f"{begin}: about {total / 60:.1f} core-minutes, {total / 60 / jobs:.1f} minutes with {jobs} at a time, and {size / 1e6:.0f} MB{guesses}"
