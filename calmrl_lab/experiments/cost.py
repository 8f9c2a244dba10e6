"""What one run of an experiment costs, in core-seconds and bytes: by finished runs of the same method, by a short run made to measure it, or guessed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.runs.run import Run
from calmrl_lab.store import FeatureStore

# One core, measured on openmoji (4 modalities) and the digits (6): an item of a pass costs this much a pair of modalities, a run this much besides.
_SECONDS_A_PAIR = 12e-6
_SECONDS_A_RUN = 2.0
# A run of the demo weighs between 3.4 and 6.3 MB.
_BYTES_A_RUN = 5e6
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


def guessed(config: TrainConfig) -> Cost:
    """From items, passes and modalities alone."""
    stores = [config.store, *config.mix]
    try:
        counts = [int((FeatureStore.open(store).split == "train").sum()) for store in stores]
        warm = int((FeatureStore.open(config.warm_up).split == "train").sum()) if config.warm_up else 0
        k = len(config.modalities or FeatureStore.open(config.store).modalities)
    except CalmrlError:
        return Cost(None, None, False)
    shown = sum(weight * count for weight, count in zip([1.0, *config.mix.values()], counts, strict=True))
    seen = shown * config.epochs + warm * config.warm_up_epochs
    return Cost(_SECONDS_A_RUN + _SECONDS_A_PAIR * seen * k * (k - 1) / 2, _BYTES_A_RUN, False)


def folder_bytes(path: Path) -> float:
    """What the files of a folder weigh."""
    return float(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
