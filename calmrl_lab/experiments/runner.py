"""Carries out an experiment: settings chosen on validation, all runs made, and the record that a report reads."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calmrl_lab.config import TrainConfig
from calmrl_lab.experiments.job import Job
from calmrl_lab.experiments.make_runs import check_engine, make_runs
from calmrl_lab.experiments.required_stores import refuse_absent_stores
from calmrl_lab.experiments.spec import Experiment, Method, asked_directions, candidates, run_config
from calmrl_lab.runs.experiment_folder import ExperimentFolder
from calmrl_lab.runs.run import Run
from calmrl_lab.runtime.atomic_folders import writing_errors
from calmrl_lab.runtime.locks import claimed


def run_experiment(experiment: Experiment, folder: Path, jobs: int, engine: str = "local") -> dict[str, Any]:
    """Run everything into `folder`/<method>-s<seed> and write experiment.json there; returns what that file holds.

    Settings in a method's grid are chosen first, on the validation split with the tuning seeds; the chosen ones run with all seeds.
    `jobs` runs at a time, in processes of this machine (`local`) or as tasks of a cluster (`ray`). Raises CalmrlError, before anything is written,
    for a store that does not exist, an engine that cannot be used, and a folder into which another experiment is writing.
    """
    check_engine(engine)
    refuse_absent_stores(experiment)
    with writing_errors(folder), claimed(folder):
        return _carry_out(experiment, folder, jobs, engine)


def _carry_out(experiment: Experiment, folder: Path, jobs: int, engine: str) -> dict[str, Any]:
    from calmrl_lab.store import FeatureStore

    store = FeatureStore.open(experiment.store)
    # A run that is killed leaves a folder that can be reported, and that says that it has not finished.
    _write_record(experiment, folder, store, {}, {}, [], finished=False)
    chosen, tried, failures = _choose(experiment, folder, jobs, engine)
    _write_record(experiment, folder, store, chosen, tried, failures, finished=False)
    last = []
    for method in experiment.methods:
        if method.name not in chosen:
            continue
        for seed in experiment.seeds:
            config = run_config(experiment, method, chosen[method.name], seed, method.name)
            last.append(final(experiment, folder, method, config))
    failures += make_runs(last, jobs, experiment.title, engine)
    return _write_record(experiment, folder, store, chosen, tried, failures, finished=True)


def _write_record(
    experiment: Experiment,
    folder: Path,
    store: Any,
    chosen: dict[str, dict[str, Any]],
    tried: dict[str, list[dict[str, Any]]],
    failures: list[dict[str, Any]],
    finished: bool,
) -> dict[str, Any]:
    """experiment.json: what was asked, what was chosen among what, and what failed."""
    record = {
        "finished": finished,
        "title": experiment.title,
        "notes": "\n".join([experiment.notes, *_scored_elsewhere(experiment)]),
        "split": experiment.split,
        "data": experiment.data,
        "stand_in": experiment.stand_in,
        "seeds": list(experiment.seeds),
        "methods": [
            {
                "name": method.name,
                "label": method.label or method.name,
                "role": method.role,
                "method": method.method,
                "settings": chosen.get(method.name, method.settings),
                "tuning": tried.get(method.name, []),
                "runs": [f"{method.name}-s{seed}" for seed in experiment.seeds],
            }
            for method in experiment.methods
        ],
        "common": experiment.common,
        "store": describe_store(store),
        "failed": failures,
    }
    ExperimentFolder(folder).write(record)
    return record


def _scored_elsewhere(experiment: Experiment) -> list[str]:
    """What the notes say where runs are scored on a store that they were not trained on."""
    return [f"Scored on {experiment.score_on}, without training on it."] if experiment.score_on else []


def _choose(
    experiment: Experiment, folder: Path, jobs: int, engine: str
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """Settings per method with the best mean validation score, the scores of all candidates, and the failures on the way."""
    trials: dict[str, list[tuple[dict[str, Any], list[Job]]]] = {}
    chosen: dict[str, dict[str, Any]] = {}
    for method in experiment.methods:
        options = candidates(method)
        if len(options) == 1:
            chosen[method.name] = options[0]
            continue
        trials[method.name] = [
            (settings, [trial(experiment, folder, method, settings, seed) for seed in experiment.tuning_seeds])
            for settings in options
        ]
    every = [job for options in trials.values() for _, made in options for job in made]
    failures = make_runs(every, jobs, "choosing on validation", engine) if every else []
    tried: dict[str, list[dict[str, Any]]] = {}
    for name, settings_and_jobs in trials.items():
        scored = scored_candidates(settings_and_jobs)
        if scored:
            chosen[name], tried[name] = best_of(scored), scored
    return chosen, tried, failures


def scored_candidates(trials: Sequence[tuple[dict[str, Any], Sequence[Job]]]) -> list[dict[str, Any]]:
    """Settings and mean validation score of the candidates whose trials have all finished."""
    scored = []
    for settings, made in trials:
        scores = [Run.open(job.path).summary["validation_mrr"] for job in made if job.finished()]
        if len(scores) == len(made):
            scored.append({"settings": settings, "validation_mrr": sum(scores) / len(scores)})
    return scored


def best_of(scored: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings with the best score; the first of equals, and none whose score is not a number before one that has a score."""
    best: dict[str, Any] = max(scored, key=lambda row: (math.isfinite(row["validation_mrr"]), row["validation_mrr"]))[
        "settings"
    ]
    return best


def final(experiment: Experiment, folder: Path, method: Method, config: TrainConfig) -> Job:
    probes = experiment.probes if experiment.probes and config.seed in experiment.probes.seeds else None
    path = folder / f"{method.name}-s{config.seed}"
    directions = asked_directions(experiment)
    return Job(path, config, method.label or method.name, experiment.split, directions, probes, experiment.score_on)


def trial(experiment: Experiment, folder: Path, method: Method, settings: dict[str, Any], seed: int) -> Job:
    key = hashlib.md5(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    config = run_config(experiment, method, settings, seed, method.name)
    return Job(folder / "tuning" / f"{method.name}-{key}-s{seed}", config, method.label or method.name, None)


def describe_store(store: Any) -> dict[str, Any]:
    """The facts of a store that a report prints: sizes, gaps and their reasons, encoders, licence."""
    import numpy as np

    from calmrl_lab.data.missingness import pattern_names

    names, counts = np.unique(np.asarray(pattern_names(store.mask, store.modalities)), return_counts=True)
    splits, sizes = np.unique(store.split, return_counts=True)
    return {
        "path": str(store.path),
        "digest": store.digest,
        "dataset": store.dataset,
        "licence": store.licence,
        "attribution": store.attribution,
        "items": len(store),
        "splits": dict(zip(splits.tolist(), sizes.tolist(), strict=True)),
        "modalities": list(store.modalities),
        "dims": store.dims,
        "missing": {
            m: {
                reason: int((store.reason[:, j] == code).sum())
                for code, reason in ((1, "absent"), (2, "failed"), (3, "not extracted"))
            }
            for j, m in enumerate(store.modalities)
        },
        "patterns": dict(sorted(zip(names.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1])),
        "encoders": {m: store.spec(m).encoder for m in store.modalities},
    }
