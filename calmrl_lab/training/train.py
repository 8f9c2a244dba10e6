"""The way into training: a configuration or keyword settings to a finished run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calmrl_lab.config import TrainConfig, build
from calmrl_lab.errors import CalmrlError
from calmrl_lab.runs.run import Run
from calmrl_lab.runtime.devices import resolve
from calmrl_lab.runtime.distributed import rank, together
from calmrl_lab.training.session import _Session

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore


def train_heads(
    store: FeatureStore | str | Path,
    objective: str = "calmrl",
    imputer: Any = "ppca",
    scenario: str = "full",
    seed: int = 0,
    run: str | Path | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> Run:
    """Train projection heads over the cached features of `store` and return the finished run.

    `imputer` is a name, or an unfitted imputer such as `PPCA(latent_dim=32)`, whose options are taken over. `run` is the run
    directory (default: runs/<objective>-<imputer>-<scenario>-s<seed>), where a finished run is replaced only with `overwrite`. `settings` are the other fields of `TrainConfig`.
    Raises CalmrlError for a request that makes no sense, before anything is written.
    """
    options = dict(settings.pop("impute_options", {}))
    if not isinstance(imputer, str):
        options = {**imputer.options(), **options}
        imputer = imputer.name
    path = getattr(store, "path", store)
    values = {"store": str(path), "objective": objective, "impute": imputer, "scenario": scenario, "seed": seed, **settings}
    if options:
        values["impute_options"] = options
    config = build(TrainConfig, values, "train_heads")
    return train(config, Path(run) if run else default_run_path(config), overwrite=overwrite)


def default_run_path(config: TrainConfig) -> Path:
    """runs/<objective>-<imputer>-<scenario>-s<seed>, with characters a file system may refuse replaced."""
    name = "-".join([config.objective, config.impute, config.scenario, f"s{config.seed}"])
    return Path("runs") / "".join(c if c.isalnum() or c in "-_.+@" else "_" for c in name)


def train(config: TrainConfig, path: Path, resume: bool = False, overwrite: bool = False) -> Run:
    """Run `config` into the directory `path`; with `resume`, go on from its last checkpoint; with `overwrite`, replace a finished run there.

    Under torchrun all processes train together: each embeds its share of every batch, and the loss is that of the whole batch. Only the
    first one writes. An ensemble (`members`) is trained member by member.
    """
    if config.members:
        from calmrl_lab.training.ensemble import train_members

        return train_members(config, path, resume, overwrite)
    with together(resolve(config.device)) as device:
        session = _Session(config, device)
        with opened_for_training(config, path, resume, overwrite) if rank() == 0 else nullcontext(Run(path)) as run:
            if resume:
                session.restore(run)
            session.learn(run)
    return Run(path)


def opened_for_training(config: TrainConfig, path: Path, resume: bool, overwrite: bool) -> AbstractContextManager[Run]:
    """The run at `path`, locked: as it was left, with `resume`, or new. Raises CalmrlError for a finished run that may not be replaced."""
    if not resume:
        return Run.create(path, config, overwrite)
    run = Run.open(path)
    if run.finished():
        raise CalmrlError(f"run '{path}' has finished already", hint=f"calmrl-lab evaluate --run {path}")
    return run.writing()
