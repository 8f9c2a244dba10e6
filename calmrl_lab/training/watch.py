"""Who is told of a training while it goes on: loggers of other packages, and callbacks after each validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from calmrl_lab.errors import CalmrlError

# (name -> finite number, step of the optimiser)
Log: TypeAlias = Callable[[dict[str, float], int], object]


@dataclass(frozen=True)
class Validation:
    """The state of a training after one validation.

    epoch: 0 before the first. phase: start, warm-up or train. step: of the optimiser. metrics: what metrics.jsonl says of it: terms of the
    loss (means of the epoch), `validation_mrr` and more. run: the folder of the run, not finished yet. heads: the projection heads, in
    training mode, to look at and not to change.
    """

    epoch: int
    phase: str
    step: int
    metrics: Mapping[str, Any]
    run: Path
    heads: Any

    @property
    def numbers(self) -> dict[str, float]:
        """The metrics that are finite numbers, without the counters."""
        found = {name: float(value) for name, value in self.metrics.items() if isinstance(value, int | float)}
        return {name: value for name, value in found.items() if name not in ("epoch", "step") and math.isfinite(value)}


Callback: TypeAlias = Callable[[Validation], object]


@dataclass(frozen=True)
class Watch:
    """What happens beside a training: `callbacks` are called after each validation, in order, by the first process."""

    callbacks: Sequence[Callback] = ()

    @classmethod
    def of(cls, logger: Any = None, callbacks: Sequence[Callback] = ()) -> Watch:
        """`logger`: see `log_of`; it is told before the callbacks. Raises CalmrlError for callbacks that cannot be called."""
        first: list[Callback] = []
        if logger is not None:
            log = log_of(logger)
            first.append(lambda validation: log(validation.numbers, validation.step))
        if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
            raise CalmrlError(
                f"callbacks are {callbacks!r}, expected a list of functions of one Validation", hint="callbacks=[function]"
            )
        return cls((*first, *callbacks))

    def told(self, validation: Validation) -> None:
        """Tell everybody. What a callback raises ends the training; the run can be resumed from its last checkpoint."""
        for callback in self.callbacks:
            callback(validation)


def log_of(logger: Any) -> Log:
    """One way of logging for all: TensorBoard's SummaryWriter, a run of W&B (or its module), MLflow's module, or a callable (metrics, step).

    Raises CalmrlError for anything else.
    """
    if callable(getattr(logger, "add_scalar", None)):
        return lambda metrics, step: [logger.add_scalar(name, value, step) for name, value in metrics.items()]
    if callable(getattr(logger, "log_metrics", None)):
        return lambda metrics, step: logger.log_metrics(metrics, step=step)
    if callable(getattr(logger, "log", None)):
        return lambda metrics, step: logger.log(metrics, step=step)
    if callable(logger):
        called: Log = logger
        return called
    raise CalmrlError(
        f"logger is a {type(logger).__name__}, which cannot be told metrics",
        hint="a SummaryWriter of TensorBoard, a run of wandb, the module mlflow, or a function of (metrics, step)",
    )
