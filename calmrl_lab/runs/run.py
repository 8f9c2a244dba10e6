"""A run: its folder, and what it learned."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from calmrl_lab.model.alignment_model import AlignmentModel

P = ParamSpec("P")
R = TypeVar("R")


class Run(RunFolder):
    """One run: its folder, and what it learned.

    >>> import numpy as np
    >>> from calmrl_lab import FeatureStore, Run, train_heads
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 60, 8))
    >>> store = FeatureStore.from_arrays({"vision": vision, "text": text})
    >>> run = train_heads(store, "clip", epochs=1, dim=4, device="cpu", run="runs/first")
    >>> Run.open("runs/first").model().dims == {"text": 8, "vision": 8}
    True
    """

    def model(self) -> AlignmentModel:
        """What this run learned, on the CPU. Raises CalmrlError for a run that has not finished, or whose model is absent or damaged."""
        from calmrl_lab.model.alignment_model import AlignmentModel

        if not self.finished():
            raise CalmrlError(
                f"run '{self.path}' has not finished", hint=f"go on with: calmrl-lab train-heads --resume {self.path}"
            )
        return AlignmentModel.load(self)


def writes_into_run(command: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Run | Path | str, P], R]:
    """`command(run, ...)` as the only writer of its run, from its first look at the model to its last file. Raises CalmrlError, which names the
    run, if another process writes into it."""

    @wraps(command)
    def alone(run: Run | Path | str, *arguments: P.args, **options: P.kwargs) -> R:
        with Run.open(run.path if isinstance(run, Run) else run).writing() as locked:
            return command(locked, *arguments, **options)

    return alone
