"""Experiment files read, laid over each other and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calmrl_lab.config import build, laid_over, override, read_yaml
from calmrl_lab.errors import CalmrlError
from calmrl_lab.experiments.spec import Experiment, Variant, candidates, run_config
from calmrl_lab.registry import known


def read_experiment(path: Path, assignments: Sequence[str] = (), data: str | None = None) -> Experiment:
    """The experiment in a YAML file on one of its `data` (default: the first), with `--set` applied; every method's settings are checked
    here, before anything runs.
    """
    from calmrl_lab.experiments.checks import refuse_impossible, refuse_unanswerable

    values = override(on_data(read_yaml(path), data, path), assignments)
    experiment = build(Experiment, values, str(path))
    names = [method.name for method in experiment.methods]
    for name in names:
        if names.count(name) > 1:
            raise CalmrlError(f"{path}: two methods are called '{name}'")
    for method in experiment.methods:
        where = f"{path}: method '{method.name}'"
        for settings in candidates(method):
            refuse_impossible(run_config(experiment, method, settings, experiment.seeds[0], where), where)
    refuse_unanswerable(experiment, path)
    return experiment


def on_data(values: dict[str, Any], data: str | None, path: Path) -> dict[str, Any]:
    """The keys of an experiment file with those of one entry of its `data` laid over them."""
    variants = values.pop("data", None)
    if variants is None and data is None:
        return values
    if not isinstance(variants, dict) or not variants:
        raise CalmrlError(f"{path} knows only one data set, so --data {data} cannot be chosen", hint="leave --data out")
    name = next(iter(variants)) if data is None else data
    known(name, list(variants), f"{path} has no data")
    asked = {} if variants[name] is None else variants[name]
    if not isinstance(asked, dict):
        raise CalmrlError(f"{path}: data '{name}' holds a {type(asked).__name__}, expected keys with values")
    if not isinstance(values.get("methods"), list) or not all(isinstance(method, dict) for method in values["methods"]):
        raise CalmrlError(f"{path}: methods: expected a list of methods, each with keys and values")
    variant = build(Variant, asked, f"{path}: data '{name}'")
    methods = [method for method in values["methods"] if method.get("name") not in variant.leave_out]
    names = [method.get("name") for method in values["methods"]]
    for other in (*variant.methods, *variant.leave_out):
        known(other, names, f"{path}: data '{name}': the file has no method")
    laid = {
        "data": name,
        "stand_in": variant.stand_in,
        "store": variant.store or values.get("store"),
        "common": laid_over(values.get("common", {}), variant.common),
        "methods": [
            {**method, "settings": laid_over(method.get("settings", {}), variant.methods.get(method.get("name"), {}))}
            for method in methods
        ],
        "notes": "\n".join(filter(None, [str(values.get("notes", "")).strip(), variant.notes.strip()])),
    }
    given: dict[str, Any] = {
        "directions": variant.directions or None,
        "score_on": variant.score_on,
        "seeds": variant.seeds,
        "tuning_seeds": variant.tuning_seeds,
        "probes": variant.probes and variant.probes.model_dump(),
    }
    return {**values, **laid, **{key: value for key, value in given.items() if value is not None}}
