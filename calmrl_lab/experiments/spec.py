"""Experiment files: methods x grid x seeds on one of several data, read, laid together and checked before anything runs."""

from __future__ import annotations

import itertools
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from calmrl_lab.config import Settings, TrainConfig, laid_over, override
from calmrl_lab.errors import CalmrlError
from calmrl_lab.methods.resolve import resolve


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    twice = [seed for seed in seeds if seeds.count(seed) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is named twice")
    return seeds


# A run is made per method and seed, so that a seed has one place; the range is that of a run's own seed.
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1, max_length=1000), AfterValidator(_distinct)
]


class Method(Settings):
    """One row of the final tables."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=100, description="short name, also the folder")
    label: str | None = Field(None, description="name in tables and figures")
    role: Literal["oracle", "baseline", "calibrated", "control"] = Field("baseline", description="what the row is for")
    method: str | None = Field(
        None, description="named set of settings below all others (calmrl-lab list methods); default: that of train-heads"
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="training settings of this row, over those of its method"
    )
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict, description="settings to choose among, on validation only; every combination is tried"
    )


class Probes(Settings):
    """What is asked of some runs beyond ranks: missing modalities at test time, classification."""

    seeds: Seeds = Field((0,), description="seeds whose runs are probed (each probe costs seconds)")
    queries: tuple[str, ...] = Field(("caption",), description="query modalities of the missing-rate curves; empty: no curves")
    label: str | None = Field(None, description="label to classify; none: no classification")
    kinds: tuple[str, ...] = Field((), description="kinds of classification, as zero-shot; empty: all that the data allow")


class Variant(Settings):
    """The same comparison on other data: what differs from the rest of the file."""

    store: str | None = Field(None, description="feature store")
    score_on: str | None = Field(
        None, description="feature store that finished runs are scored on; default: the one they are trained on"
    )
    stand_in: str | None = Field(
        None, description="what this data stands in for, and what it cannot show; printed with every result"
    )
    notes: str = Field("", description="added to the notes of the file")
    common: dict[str, Any] = Field(default_factory=dict, description="training settings of all methods")
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict, description="settings by method")
    directions: tuple[str, ...] = Field((), description="directions to score, as caption:vision; empty: all")
    leave_out: tuple[str, ...] = Field((), description="methods that make no sense on this data")
    seeds: Seeds | None = Field(None, description="one run a method and seed")
    tuning_seeds: Seeds | None = Field(None, description="seeds of the runs that choose among a grid")
    probes: Probes | None = Field(None, description="curves and classification of some runs")


class Experiment(Settings):
    """An experiment file, on one of its data."""

    title: str = Field(description="heading of the report")
    notes: str = Field("", description="what is compared, and why the settings are what they are")
    store: str = Field(description="feature store")
    score_on: str | None = Field(
        None, description="feature store that finished runs are scored on; default: the one they are trained on"
    )
    seeds: Seeds = Field((0, 1, 2, 3, 4), description="one run a method and seed")
    tuning_seeds: Seeds = Field((100, 101), description="seeds of the runs that choose among a grid")
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


def asked_directions(experiment: Experiment) -> tuple[tuple[str, str], ...]:
    """(query, gallery) pairs. Raises CalmrlError for one that is not of the form query:gallery."""
    pairs = []
    for text in experiment.directions:
        query, colon, gallery = text.partition(":")
        if not (query and colon and gallery) or ":" in gallery:
            raise CalmrlError(f"direction '{text}' is not of the form query:gallery", hint="for example caption:vision")
        pairs.append((query, gallery))
    return tuple(pairs)


def candidates(method: Method) -> list[dict[str, Any]]:
    """The settings of `method` under every combination of its grid."""
    combinations = itertools.product(*([(key, value) for value in values] for key, values in method.grid.items()))
    return [override(method.settings, [f"{key}={json.dumps(value)}" for key, value in chosen]) for chosen in combinations]


def run_config(experiment: Experiment, method: Method, settings: dict[str, Any], seed: int, source: str) -> TrainConfig:
    """The configuration of one run: the settings of `method`, those common to the file over them, and `settings` over both."""
    values = {"store": experiment.store, **laid_over(experiment.common, settings)}
    if experiment.split_by_seed:
        values["split_seed"] = seed
    return resolve({**values, "method": method.method, "seed": seed}, source)
