"""Entry points of training: from a configuration or keyword settings to a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers.base import Imputer
from calmrl_lab.methods.resolve import default_run_path, resolve
from calmrl_lab.runs.run import Run
from calmrl_lab.runtime import console
from calmrl_lab.runtime.devices import resolve as resolve_device
from calmrl_lab.runtime.distributed import rank, together
from calmrl_lab.runtime.progress import shown
from calmrl_lab.runtime.threads import limited
from calmrl_lab.training.session import Session
from calmrl_lab.training.watch import Callback, Watch

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore


def train_heads(
    store: FeatureStore | str | Path,
    method: str | None = None,
    *,
    run: str | Path | None = None,
    imputer: Any = None,
    overwrite: bool = False,
    logger: Any = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = False,
    **settings: Any,
) -> Run:
    """Train projection heads over the cached features of `store` and return the finished run.

    `method` names a set of settings (`calmrl-lab list methods`; default: recommended, as on the command line). `settings` are fields of
    `TrainConfig` (scenario, seed, epochs, ...) and lie over it. `imputer` is the setting `impute`: a name, or an unfitted imputer such as
    `PPCA(latent_dim=32)`, whose options are taken over. `run` is the run directory (default: `default_run_path`), where a finished run is
    replaced only with `overwrite`.

    `logger` is told the metrics of every epoch: TensorBoard's SummaryWriter, a run of W&B, the module mlflow, or a function (metrics, step).
    `callbacks` are called after each validation, the one before the first epoch included, with a `Validation`; what they raise ends the
    training, which can be resumed. `progress` shows on standard error how far it is.
    Raises CalmrlError for a request that makes no sense, before anything is written.

    >>> import numpy as np
    >>> from calmrl_lab import FeatureStore, train_heads
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 60, 8))
    >>> store = FeatureStore.from_arrays({"vision": vision, "text": text})
    >>> run = train_heads(store, "clip", epochs=1, dim=4, device="cpu", run="runs/first")
    >>> run.summary["epochs"]
    1
    """
    path = getattr(store, "path", store)
    if not isinstance(path, str | Path):
        raise CalmrlError(
            f"the store is a {type(store).__name__}, expected a FeatureStore or the path of one",
            hint="features in memory: FeatureStore.from_arrays({modality: array})",
        )
    values: dict[str, Any] = {"store": str(path), "method": method, **settings}
    if imputer is not None:
        if "impute" in settings:
            raise CalmrlError("imputer and impute are one setting, and both were given", hint="leave one of them out")
        if not isinstance(imputer, str | Imputer):
            raise CalmrlError(
                f"imputer is {imputer!r}, expected the name of one or an imputer of calmrl_lab.imputers",
                hint="imputer=PPCA(latent_dim=32)",
            )
        own = {} if isinstance(imputer, str) else imputer.options()
        values["impute"] = imputer if isinstance(imputer, str) else imputer.name
        if own:
            values["impute_options"] = {**own, **settings.get("impute_options", {})}
    config = resolve(values, "train_heads")
    with shown() if progress else nullcontext():
        path = Path(run) if run else default_run_path(config)
        return train(config, path, overwrite=overwrite, watch=Watch.of(logger, callbacks))


@limited()
def train(config: TrainConfig, path: Path, resume: bool = False, overwrite: bool = False, watch: Watch | None = None) -> Run:
    """Run `config` into the directory `path`; with `resume`, go on from its last checkpoint; with `overwrite`, replace a finished run there.
    `watch` says who is told of it as it goes on (default: the progress display).

    Under torchrun all processes train together: each embeds its share of every batch, and the loss is that of the whole batch. Only the
    first one writes. An ensemble (`members`) is trained member by member.
    """
    if config.members:
        from calmrl_lab.training.ensemble import train_members

        return train_members(config, path, resume, overwrite, watch)
    with together(resolve_device(config.device)) as device:
        if rank() == 0 and not resume:
            # The start of the heads may take minutes, and what is in the way is known now.
            Run.refuse_place(path, overwrite)
        session = Session(config, device, watch)
        with opened_for_training(config, path, resume, overwrite) if rank() == 0 else nullcontext(Run(path)) as run:
            if resume:
                session.restore(run)
            session.learn(run)
    return Run(path)


def train_seeds(config: TrainConfig, seeds: Sequence[int], path: Path | None = None, overwrite: bool = False) -> list[Run]:
    """The same training with each of `seeds`, one run after the other, at `path`-s<seed> (default: `default_run_path`).

    A finished run of the same settings is taken as it is, so that a series that was interrupted goes on; with `overwrite` it is trained again.
    """
    found = []
    for seed in seeds:
        own = config.model_copy(update={"seed": seed})
        place = default_run_path(own) if path is None else path.with_name(f"{path.name}-s{seed}")
        done = None if overwrite else _finished(own, place)
        if done is not None:
            console.note(f"run '{place}' has finished already")
        found.append(done or train(own, place, overwrite=overwrite))
    return found


def _finished(config: TrainConfig, path: Path) -> Run | None:
    """The finished run of exactly these settings at `path`; None if there is none."""
    if not (path / Run.CONFIG).is_file():
        return None
    run = Run.open(path)
    return run if run.finished() and run.config == config else None


def opened_for_training(config: TrainConfig, path: Path, resume: bool, overwrite: bool) -> AbstractContextManager[Run]:
    """The run at `path`, locked: as it was left, with `resume`, or new. Raises CalmrlError for a finished run that may not be replaced."""
    if not resume:
        return Run.create(path, config, overwrite)
    run = Run.open(path)
    if run.finished():
        raise CalmrlError(f"run '{path}' has finished already", hint=f"calmrl-lab evaluate --run {path}")
    return run.writing()
