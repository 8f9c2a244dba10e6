"""The settings of a run from a file, from flags and from the recommended method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from calmrl_lab.config import TrainConfig, build, override, read_yaml
from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime import console


def request(file: Path | None, flags: Mapping[str, Any], assignments: Sequence[str]) -> TrainConfig:
    """The configuration a command line asks for: the file, then the flags that were given, then `--set`."""
    values = read_yaml(file) if file else {}
    values |= {key: value for key, value in flags.items() if value is not None}
    values = override(values, assignments)
    if not values.get("store"):
        raise CalmrlError("no feature store was named", hint="--store stores/openmoji.zarr (calmrl-lab extract writes one)")
    return build(TrainConfig, recommended(values), str(file) if file else "train-heads")


# What is trained when nobody says how: the best single model of docs/beyond.md.
RECOMMENDED: dict[str, Any] = {
    "objective": "clip", "impute": "none", "init": "ppca", "init_options": {"kernel": "heads"}, "similarity": "sum", "epochs": 30,
    "learning_rate": 3e-4, "objective_options": {"temperature": 0.15},
}  # fmt: skip


# A word on any of these is a choice of method.
_CHOICES = (
    "objective", "objective_options", "impute", "impute_options", "impute_as_observed", "init", "features", "head", "members", "similarity", "gate",
    "warm_up",
)  # fmt: skip


def recommended(values: dict[str, Any]) -> dict[str, Any]:
    """`values` over the recommended method, if they choose none and the store has no projection weights of its own to start from."""
    from calmrl_lab.store import FeatureStore

    if any(key in values for key in _CHOICES):
        return values
    with suppress(CalmrlError):
        if FeatureStore.open(values["store"]).heads:
            return values
    console.note(
        "no method was named: heads from PPCA of kernel features, then CLIP, beside a likelihood ratio; --impute ppca is the paper's method"
    )
    # Heads from PPCA have the dimension of its latent vector.
    latent = {"latent_dim": values["dim"]} if "dim" in values else {}
    options = {**RECOMMENDED["init_options"], **latent, **values.get("init_options", {})}
    return {**RECOMMENDED, **values, "init_options": options}
