"""Many runs from one file: methods x grid x seeds, several at a time, finished ones skipped, failed ones reported."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from calmrl_lab import console
from calmrl_lab.config import TrainConfig, build, override, read_yaml
from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import nearest
from calmrl_lab.runs import Run, write_atomically


class Method(BaseModel):
    """One row of the final tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_.+-]+$", description="short name, also the folder")
    label: str | None = Field(None, description="name in tables and figures")
    role: Literal["oracle", "baseline", "calibrated", "control"] = Field("baseline", description="what the row is for")
    settings: dict[str, Any] = Field(default_factory=dict, description="training settings of this method")
    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="settings to choose among, on validation only; every combination is tried"
    )


class Probes(BaseModel):
    """What is asked of some runs beyond ranks: missing modalities at test time, classification."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seeds: tuple[int, ...] = Field((0,), description="seeds whose runs are probed (each probe costs seconds)")
    queries: tuple[str, ...] = Field(("caption",), description="query modalities of the missing-rate curves; empty: no curves")
    label: str | None = Field(None, description="label to classify; none: no classification")


class Variant(BaseModel):
    """The same comparison on other data: what differs from the rest of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str | None = Field(None, description="feature store")
    stand_in: str | None = Field(
        None, description="what this data stands in for, and what it cannot show; printed with every result"
    )
    notes: str = Field("", description="added to the notes of the file")
    common: dict[str, Any] = Field(default_factory=dict, description="training settings of all methods")
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict, description="settings by method")
    directions: tuple[str, ...] = Field((), description="directions to score, as caption:vision; empty: all")
    leave_out: tuple[str, ...] = Field((), description="methods that make no sense on this data")
    seeds: tuple[int, ...] | None = Field(None, min_length=1, description="one run a method and seed")
    tuning_seeds: tuple[int, ...] | None = Field(None, min_length=1, description="seeds of the runs that choose among a grid")
    probes: Probes | None = Field(None, description="curves and classification of some runs")


class Experiment(BaseModel):
    """An experiment file, on one of its data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(description="heading of the report")
    notes: str = Field("", description="what is compared, and why the settings are what they are")
    store: str = Field(description="feature store")
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1, description="one run a method and seed")
    tuning_seeds: tuple[int, ...] = Field((100, 101), min_length=1, description="seeds of the runs that choose among a grid")
    common: dict[str, Any] = Field(default_factory=dict, description="training settings of all methods")
    methods: tuple[Method, ...] = Field(min_length=1, description="the methods to compare")
    split: str = Field("test", description="the split that is scored")
    directions: tuple[str, ...] = Field((), description="directions to score, as caption:vision; empty: all")
    split_by_seed: bool = Field(
        False, description="every seed draws a 60/15/25 split by group of its own, besides masks and starts"
    )
    probes: Probes | None = Field(None, description="curves and classification of some runs")
    data: str | None = Field(None, description="name of the data, where the file has several")
    stand_in: str | None = Field(None, description="what the data stands in for; printed with every result")


def read_experiment(path: Path, assignments: Sequence[str] = (), data: str | None = None) -> Experiment:
    """The experiment in a YAML file on one of its `data` (default: the first), with `--set` applied; every method's settings are checked
    here, before anything runs.
    """
    values = override(on_data(read_yaml(path), data, path), assignments)
    experiment = build(Experiment, values, str(path))
    asked_directions(experiment)
    names = [method.name for method in experiment.methods]
    for name in names:
        if names.count(name) > 1:
            raise CalmrlError(f"{path}: two methods are called '{name}'")
    for method in experiment.methods:
        where = f"{path}: method '{method.name}'"
        for settings in candidates(method):
            _refuse_impossible(run_config(experiment, settings, experiment.seeds[0], where), where)
    return experiment


def _refuse_impossible(config: TrainConfig, where: str) -> None:
    """CalmrlError naming the method if its run would stop before the first step: an objective that does not fit the modalities, say."""
    from calmrl_lab.missingness import apply_scenario
    from calmrl_lab.store import FeatureStore
    from calmrl_lab.training import make_objective, refuse_unfilled

    modalities = config.modalities
    if modalities is None:
        if config.mix or not Path(config.store).exists():
            return
        modalities = FeatureStore.open(config.store).modalities
    try:
        make_objective(config, modalities, config.dim)
        if config.scenario != "full":
            refuse_unfilled(config)
        apply_scenario(config.scenario, [], modalities, np.zeros((0, len(modalities)), dtype=bool), 0)
    except CalmrlError as error:
        raise CalmrlError(f"{where}: {error.message}", hint=error.hint) from None


def on_data(values: dict[str, Any], data: str | None, path: Path) -> dict[str, Any]:
    """The keys of an experiment file with those of one entry of its `data` laid over them."""
    known = values.pop("data", None)
    if known is None and data is None:
        return values
    if not isinstance(known, dict) or not known:
        raise CalmrlError(f"{path} knows only one data set, so --data {data} cannot be chosen", hint="leave --data out")
    name = next(iter(known)) if data is None else data
    if name not in known:
        raise CalmrlError(f"{path} has no data '{name}'{nearest(name, list(known))}", hint=f"it has: {', '.join(known)}")
    variant = build(Variant, known[name] or {}, f"{path}: data '{name}'")
    methods = [method for method in values.get("methods", []) if method.get("name") not in variant.leave_out]
    names = [method.get("name") for method in values.get("methods", [])]
    for other in (*variant.methods, *variant.leave_out):
        if other not in names:
            raise CalmrlError(
                f"{path}: data '{name}' names a method '{other}'{nearest(other, names)} that the file does not have"
            )
    laid = {
        "data": name,
        "stand_in": variant.stand_in,
        "store": variant.store or values.get("store"),
        "common": _laid_over(values.get("common", {}), variant.common),
        "methods": [
            {**method, "settings": _laid_over(method.get("settings", {}), variant.methods.get(method.get("name"), {}))}
            for method in methods
        ],
        "notes": "\n".join(filter(None, [str(values.get("notes", "")).strip(), variant.notes.strip()])),
    }
    given: dict[str, Any] = {
        "directions": variant.directions or None,
        "seeds": variant.seeds,
        "tuning_seeds": variant.tuning_seeds,
        "probes": variant.probes and variant.probes.model_dump(),
    }
    return {**values, **laid, **{key: value for key, value in given.items() if value is not None}}


def asked_directions(experiment: Experiment) -> tuple[tuple[str, str], ...]:
    """(query, gallery) pairs. Raises CalmrlError for one that is not of the form query:gallery."""
    pairs = []
    for text in experiment.directions:
        query, colon, gallery = text.partition(":")
        if not (query and colon and gallery) or ":" in gallery:
            raise CalmrlError(f"direction '{text}' is not of the form query:gallery", hint="for example caption:vision")
        pairs.append((query, gallery))
    return tuple(pairs)


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two layers of settings; groups of options are merged key by key."""
    result = dict(below)
    for key, value in above.items():
        inner = result.get(key)
        result[key] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def candidates(method: Method) -> list[dict[str, Any]]:
    """The settings of `method` under every combination of its grid."""
    combinations = itertools.product(*([(key, value) for value in values] for key, values in method.grid.items()))
    return [override(method.settings, [f"{key}={json.dumps(value)}" for key, value in chosen]) for chosen in combinations]


def run_config(experiment: Experiment, settings: dict[str, Any], seed: int, source: str) -> TrainConfig:
    values = {"store": experiment.store, **_laid_over(experiment.common, settings)}
    if experiment.split_by_seed:
        values["split_seed"] = seed
    return build(TrainConfig, {**values, "seed": seed}, source)


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
        if not all((self.path / name).is_file() for name in self._files()):
            return False
        return digest == _digest(self.config.store)


def _digest(store: str, _known: dict[str, str] = {}) -> str:  # noqa: B006
    if store not in _known:
        from calmrl_lab.store import FeatureStore

        _known[store] = FeatureStore.open(store).digest
    return _known[store]


def _single_thread() -> None:
    import torch

    torch.set_num_threads(1)
    console.err.quiet = True


def _perform(job: Job) -> dict[str, Any]:
    """Runs in a worker process. Returns {} or the error of the run, so that one failure never stops the others."""
    from calmrl_lab.evaluation import evaluate
    from calmrl_lab.training import train

    (job.path / "error.json").unlink(missing_ok=True)
    try:
        run = train(job.config, job.path)
        if job.split is not None:
            run.write_json("summary.json", {**run.summary, "method": job.label})
            evaluate(run, list(job.directions) or None, split=job.split)
            _probe(run, job.probes, job.split)
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


def _run_all(jobs: Sequence[Job], workers: int, title: str) -> list[dict[str, Any]]:
    """Run what is not finished, `workers` at a time; the failures."""
    todo = [job for job in jobs if not job.finished()]
    if len(todo) < len(jobs):
        console.note(f"{title}: {len(jobs) - len(todo)} of {len(jobs)} runs are finished already")
    failures = []
    with console.progress(title, len(todo)) as ticker:
        for job, failure in _outcomes(todo, workers):
            if failure:
                failures.append(failure)
                console.note(f"failed: {job.path.name}: {failure['error']}")
            ticker.advance(1, job.path.name)
    return failures


def _outcomes(todo: Sequence[Job], workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    if not todo:
        return
    # One thread a process: runs are the parallelism, and their numbers do not depend on how many go at once.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    with ProcessPoolExecutor(min(workers, len(todo)), mp_context=get_context("spawn"), initializer=_single_thread) as pool:
        waiting: dict[Future[dict[str, Any]], Job] = {pool.submit(_perform, job): job for job in todo}
        try:
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    job = waiting.pop(future)
                    try:
                        yield job, future.result()
                    except Exception as error:  # the worker process itself died
                        yield job, {"run": job.path.name, "label": job.label, "error": f"the worker died: {error}"}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_experiment(experiment: Experiment, folder: Path, jobs: int) -> dict[str, Any]:
    """Run everything into `folder`/<method>-s<seed> and write experiment.json there; returns what that file holds.

    Settings in a method's grid are chosen first, on the validation split with the tuning seeds; the chosen ones run with all seeds.
    """
    from calmrl_lab.store import FeatureStore

    store = FeatureStore.open(experiment.store)
    # A run that is killed leaves a folder that can be reported, and that says that it has not finished.
    _write_record(experiment, folder, store, {}, {}, [], finished=False)
    chosen, tried, failures = _choose(experiment, folder, jobs)
    _write_record(experiment, folder, store, chosen, tried, failures, finished=False)
    last = []
    for method in experiment.methods:
        if method.name not in chosen:
            continue
        for seed in experiment.seeds:
            config = run_config(experiment, chosen[method.name], seed, method.name)
            last.append(final(experiment, folder, method, config))
    failures += _run_all(last, jobs, experiment.title)
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
        "notes": experiment.notes,
        "split": experiment.split,
        "data": experiment.data,
        "stand_in": experiment.stand_in,
        "seeds": list(experiment.seeds),
        "methods": [
            {
                "name": method.name,
                "label": method.label or method.name,
                "role": method.role,
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
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "experiment.json", (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
    return record


def _choose(
    experiment: Experiment, folder: Path, jobs: int
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """Settings a method with the best mean validation score, the scores of all candidates, and the failures on the way."""
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
    failures = _run_all(every, jobs, "choosing on validation") if every else []
    tried: dict[str, list[dict[str, Any]]] = {}
    for name, settings_and_jobs in trials.items():
        scored = []
        for settings, made in settings_and_jobs:
            scores = [Run.open(job.path).summary["validation_mrr"] for job in made if job.finished()]
            if len(scores) == len(made):
                scored.append({"settings": settings, "validation_mrr": sum(scores) / len(scores)})
        if scored:
            best = max(scored, key=lambda row: row["validation_mrr"])
            chosen[name], tried[name] = best["settings"], scored
    return chosen, tried, failures


def final(experiment: Experiment, folder: Path, method: Method, config: TrainConfig) -> Job:
    probes = experiment.probes if experiment.probes and config.seed in experiment.probes.seeds else None
    path = folder / f"{method.name}-s{config.seed}"
    return Job(path, config, method.label or method.name, experiment.split, asked_directions(experiment), probes)


def trial(experiment: Experiment, folder: Path, method: Method, settings: dict[str, Any], seed: int) -> Job:
    key = hashlib.md5(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    config = run_config(experiment, settings, seed, method.name)
    return Job(folder / "tuning" / f"{method.name}-{key}-s{seed}", config, method.label or method.name, None)


def describe_store(store: Any) -> dict[str, Any]:
    """The facts of a store that a report prints: sizes, gaps and their reasons, encoders, licence."""

    from calmrl_lab.missingness import pattern_names

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
