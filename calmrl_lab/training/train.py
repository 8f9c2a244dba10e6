"""Entry points of training: from a configuration or keyword settings to a finished run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.methods.resolve import default_run_path, resolve
from calmrl_lab.runs.run import Run
from calmrl_lab.runtime.devices import resolve as resolve_device
from calmrl_lab.runtime.distributed import rank, together
from calmrl_lab.runtime.threads import limited
from calmrl_lab.training.session import _Session

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore


def train_heads(
    store: FeatureStore | str | Path,
    method: str | None = None,
    *,
    run: str | Path | None = None,
    imputer: Any = None,
    overwrite: bool = False,
    **settings: Any,
) -> Run:
    """Train projection heads over the cached features of `store` and return the finished run.

    `method` names a set of settings (`calmrl-lab list methods`; default: recommended, as on the command line). `settings` are fields of
    `TrainConfig` (scenario, seed, epochs, ...) and lie over it. `imputer` is the setting `impute`: a name, or an unfitted imputer such as
    `PPCA(latent_dim=32)`, whose options are taken over. `run` is the run directory (default: `default_run_path`), where a finished run is
    replaced only with `overwrite`.
    Raises CalmrlError for a request that makes no sense, before anything is written.

    >>> run = train_heads("stores/openmoji.zarr", "calmrl", scenario="pairs:0.25", seed=0)  # doctest: +SKIP
    """
    values: dict[str, Any] = {"store": str(getattr(store, "path", store)), "method": method, **settings}
    if imputer is not None:
        if "impute" in settings:
            raise CalmrlError("imputer and impute are one setting, and both were given", hint="leave one of them out")
        own = {} if isinstance(imputer, str) else imputer.options()
        values["impute"] = imputer if isinstance(imputer, str) else imputer.name
        if own:
            values["impute_options"] = {**own, **settings.get("impute_options", {})}
    config = resolve(values, "train_heads")
    return train(config, Path(run) if run else default_run_path(config), overwrite=overwrite)


@limited()
def train(config: TrainConfig, path: Path, resume: bool = False, overwrite: bool = False) -> Run:
    """Run `config` into the directory `path`; with `resume`, go on from its last checkpoint; with `overwrite`, replace a finished run there.

    Under torchrun all processes train together: each embeds its share of every batch, and the loss is that of the whole batch. Only the
    first one writes. An ensemble (`members`) is trained member by member.
    """
    if config.members:
        from calmrl_lab.training.ensemble import train_members

        return train_members(config, path, resume, overwrite)
    with together(resolve_device(config.device)) as device:
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
