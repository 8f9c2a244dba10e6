"""What one run of an experiment costs, in core-seconds and bytes: by finished runs of the same method, by a short run made to measure it, or guessed."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calmrl_lab.config import TrainConfig
from calmrl_lab.data.training_data import splits_of
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.linalg.kernel_pca import COMPONENTS, LANDMARKS
from calmrl_lab.runs.run import Run
from calmrl_lab.store import FeatureStore
from calmrl_lab.training.ensemble import member_configs
from calmrl_lab.training.session import START_VALIDATION_ITEMS

# Core-seconds, fitted to some 300 finished runs of 160 to 900,000 items, 2 to 6 modalities: of a run besides all else; of an item in a pass, a pair
# of modalities; of a refit of PPCA, a pair (the first fit and the last are ten such); of ranking a test item against another, a pair.
_SECONDS_A_RUN, _SECONDS_A_PAIR, _SECONDS_A_REFIT, _SECONDS_A_RANK = 1.5, 60e-6, 0.08, 5e-8
# With patience, runs stop after about this share of their epochs.
_SHARE_OF_EPOCHS = 0.6
# A start by PPCA, a pair: models fitted to so many items, and validation items ranked against each other by each of them. Less without the
# similarities of features that a stacked one has beside it.
_SECONDS_A_START, _ITEMS_OF_A_START, _SECONDS_A_CANDIDATE, _NOT_STACKED = 4.2, 700, 7e-6, 0.4
# Bytes of a run besides its model, and how many copies of the kernel maps a stacked similarity has.
_BYTES_A_RUN, _COPIES_OF_KERNELS = 3e5, 2.5
# Epochs of the two short runs whose difference says what an epoch costs.
_SHORT, _LONGER = 1, 3


@dataclass(frozen=True)
class Cost:
    """Core-seconds and bytes of one run, and whether they were `measured`; None where a store is not there to be counted."""

    seconds: float | None
    bytes: float | None
    measured: bool


def of_finished(paths: Iterable[Path]) -> Cost | None:
    """The mean over the finished runs among `paths`; None if there are none."""
    seconds, sizes = [], []
    for path in paths:
        try:
            summary = Run.open(path).summary
            seconds.append(float(summary.get("core_seconds", summary["seconds"])))
        except (CalmrlError, KeyError):
            continue
        sizes.append(folder_bytes(path))
    return Cost(sum(seconds) / len(seconds), sum(sizes) / len(sizes), True) if seconds else None


def by_short_runs(config: TrainConfig, split: str | None) -> Cost:
    """Measured on this machine: a run of one epoch and one of three say what a start and what an epoch costs, and the first is evaluated on `split`.

    An upper limit: training may stop before its last epoch. An ensemble costs what its members do, which are not shortened.
    """
    from calmrl_lab.evaluation.evaluate import evaluate
    from calmrl_lab.training.train import train

    spent, size = [], 0.0
    with tempfile.TemporaryDirectory(prefix="calmrl-cost-") as folder:
        for epochs in (_SHORT, _LONGER):
            begun = time.process_time()
            run = train(config.model_copy(update={"epochs": min(epochs, config.epochs)}), Path(folder) / str(epochs))
            spent.append(time.process_time() - begun)
        begun = time.process_time()
        if split is not None:
            evaluate(run, split=split)
        ranked = time.process_time() - begun
        size = folder_bytes(run.path)
    epoch = max(0.0, spent[1] - spent[0]) / (_LONGER - _SHORT)
    return Cost(spent[0] + ranked + epoch * max(config.epochs - _SHORT, 0), size, True)


def guessed(config: TrainConfig, split: str | None = None) -> Cost:
    """From items, passes, modalities and dimensions alone, with an evaluation on `split`, if any; mostly within a factor of two."""
    if config.members:
        members = [guessed(member, split) for member in member_configs(config)]
        known = [(one.seconds, one.bytes) for one in members if one.seconds is not None and one.bytes is not None]
        if len(known) < len(members):
            return Cost(None, None, False)
        return Cost(sum(seconds for seconds, _ in known), sum(size for _, size in known), False)
    try:
        sizes = [_Sizes.of(path, config) for path in (config.store, *config.mix)]
        warm = _Sizes.of(config.warm_up, config).items.get("train", 0) if config.warm_up else 0
    except CalmrlError:
        return Cost(None, None, False)
    weights = [1.0, *config.mix.values()]
    items = sum(weight * one.items.get("train", 0) for weight, one in zip(weights, sizes, strict=True))
    seconds = _SECONDS_A_PAIR * (items * _epochs(config) + (warm * config.warm_up_epochs if _epochs(config) else 0))
    if getattr(imputers.get(config.impute), "fits_on_statistics", False):
        seconds += _SECONDS_A_REFIT * (20 + _epochs(config) / max(config.refresh, 1))
    if config.init == "ppca":
        seconds += _start(items, sizes[0].items.get("validation", 0)) * (
            1.0 if config.similarity == "stacked" else _NOT_STACKED
        )
    if split is not None:
        seconds += _SECONDS_A_RANK * sizes[0].items.get(split, 0) ** 2
    k = len(sizes[0].dims)
    return Cost(_SECONDS_A_RUN + seconds * k * (k - 1) / 2, _BYTES_A_RUN + _model_bytes(config, sizes[0].dims, items), False)


@dataclass(frozen=True)
class _Sizes:
    """Items of a store by split, and the dimensions of the modalities that a run trains on."""

    items: dict[str, int]
    dims: tuple[int, ...]

    @classmethod
    def of(cls, path: str, config: TrainConfig) -> _Sizes:
        store = FeatureStore.open(path)
        names, counts = np.unique(splits_of(store, config), return_counts=True)
        dims = tuple(store.dims[name] for name in config.modalities or store.modalities if name in store.dims)
        return cls(dict(zip(names.tolist(), counts.tolist(), strict=True)), dims)


def _epochs(config: TrainConfig) -> float:
    """How many passes over the training items there will be; without an objective there are none."""
    return 0.0 if config.objective == "none" else min(config.epochs, max(config.patience, _SHARE_OF_EPOCHS * config.epochs))


def _start(items: float, validation: int) -> float:
    """Core-seconds of a start by PPCA, a pair of modalities."""
    return (
        _SECONDS_A_START * math.sqrt(min(items / _ITEMS_OF_A_START, 1.0))
        + _SECONDS_A_CANDIDATE * min(validation, START_VALIDATION_ITEMS) ** 2
    )


def _model_bytes(config: TrainConfig, dims: Sequence[int], items: float) -> float:
    """What heads weigh, the latent maps beside those that start by PPCA, and kernel maps of the features where there are any."""
    heads, landmarks = 4.0 * sum(dims) * config.dim * (2 if config.init == "ppca" else 1), min(items, LANDMARKS)
    maps = 4.0 * landmarks * sum(dim + min(landmarks, COMPONENTS) for dim in dims)
    if config.features != "kernel" and config.init_options.get("kernel", "none") == "none":
        return heads
    return heads + maps * (_COPIES_OF_KERNELS if config.similarity == "stacked" else 1.0)


def folder_bytes(path: Path) -> float:
    """What the files of a folder weigh."""
    return float(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
