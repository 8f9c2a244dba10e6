"""What a run trains on: the stores it names, as tables of training, validation and warm-up items under their scenario."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from calmrl_lab.config import TrainConfig
from calmrl_lab.data.missingness import apply_scenario
from calmrl_lab.data.streaming_table import open_table
from calmrl_lab.data.table import FeatureTable, Table, joined, load_table
from calmrl_lab.errors import CalmrlError
from calmrl_lab.linalg.kernel_pca import COMPONENTS
from calmrl_lab.registry import known

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore

AnyTable = TypeVar("AnyTable", bound=Table)


# Validation items that models are selected on: of more, a sample, which ranks n x n and takes as long every epoch.
VALIDATION_ITEMS = 5_000


@dataclass(frozen=True)
class Data:
    """`store` is the first one, which names the run; `train` and `validation` hold the items of all of them.

    `weights` [N]: how often a pass shows each training item on average; None: every one once. `warm_up`: complete items to train on first.
    `released`: projection weights that came with the stores.
    """

    store: FeatureStore
    train: Table
    validation: FeatureTable
    released: dict[str, np.ndarray]
    weights: Tensor | None = None
    warm_up: FeatureTable | None = None

    def repeats(self, generator: torch.Generator) -> Tensor | None:
        """How often the coming pass shows each training item [N]: the weight, its fraction drawn."""
        if self.weights is None:
            return None
        whole = self.weights.floor()
        extra = torch.rand(len(whole), generator=generator, dtype=torch.float64) < self.weights - whole
        return (whole + extra).long()

    def mapped(self, maps: Sequence[Callable[[Tensor], Tensor]]) -> Data:
        """The same items with what `maps`, one per modality, make of their rows."""
        warm_up = None if self.warm_up is None else self.warm_up.mapped(maps)
        return replace(self, train=self.train.mapped(maps), validation=self.validation.mapped(maps), warm_up=warm_up)

    def shown(self, count: int) -> FeatureTable:
        """Items that decide where heads start: those of training, at most `count`, after those of the warm-up."""
        sample = self.train.sample(count)
        return sample if self.warm_up is None else joined([self.warm_up, sample], ["", ""])


def open_data(config: TrainConfig, device: str) -> Data:
    """The data of a run. Raises CalmrlError for stores, modalities, splits and scenarios that do not fit."""
    from calmrl_lab.store import FeatureStore

    store = FeatureStore.open(config.store)
    if config.mix:
        data = _mixed(config, store, device)
    else:
        full = open_table(store, config.modalities, device, config.memory, _components(config))
        split = splits_of(store, config)
        train = training_items(full, split, config)
        validation = full.select(np.flatnonzero(split == "validation")).sample(VALIDATION_ITEMS)
        data = Data(store, train, validation, dict(store.heads))
    return replace(data, warm_up=_warm_up(config, data.train, device)) if config.warm_up else data


def _mixed(config: TrainConfig, store: FeatureStore, device: str) -> Data:
    """The items of several stores in one table; a store shows the modalities that it has."""
    from calmrl_lab.store import FeatureStore

    if config.memory == "stream":
        raise CalmrlError("several stores are trained on from memory", hint="leave out memory=stream, or merge the stores")
    others = {path: FeatureStore.open(path) for path in config.mix}
    stores = {config.store: store, **others}
    dims = _common_dims(stores, config.modalities)
    trains, validations, weights = [], [], []
    released: dict[str, np.ndarray] = {}
    for path, opened in stores.items():
        table = load_table(opened, device=device, dims=dims)
        split = splits_of(opened, config)
        part = training_items(table, split, config, path)
        trains.append(part)
        validations.append(table.select(np.flatnonzero(split == "validation")))
        weights.append(torch.full((len(part),), float(config.mix.get(path, 1.0)), dtype=torch.float64))
        released |= {name: value for name, value in opened.heads.items() if name not in released}
    # The items of the first store keep their ids: its scenario hides the same wherever it is looked at.
    names = ["", *(f"{Path(path).stem}/" for path in others)]
    return Data(store, joined(trains, names), joined(validations, names), released, torch.cat(weights))


def _common_dims(stores: dict[str, FeatureStore], modalities: Sequence[str] | None) -> dict[str, int]:
    found: dict[str, int] = {}
    for path, store in stores.items():
        for name, dim in store.dims.items():
            if found.setdefault(name, dim) != dim:
                raise CalmrlError(f"'{name}' has dimension {dim} in store '{path}' and {found[name]} in another of the mix")
    for name in modalities or ():
        known(name, list(found), "no store of the mix has a modality")
    chosen = {name: found[name] for name in modalities} if modalities else found
    for path, store in stores.items():
        if not set(chosen) & set(store.modalities):
            raise CalmrlError(f"store '{path}' has none of the modalities {', '.join(chosen)}")
    if len(chosen) < 2:
        raise CalmrlError(f"alignment needs at least two modalities, got {len(chosen)}")
    return chosen


def _warm_up(config: TrainConfig, train: Table, device: str) -> FeatureTable:
    from calmrl_lab.store import FeatureStore

    assert config.warm_up is not None
    store = FeatureStore.open(config.warm_up)
    for name in train.modalities:
        known(name, store.modalities, f"warm-up store '{config.warm_up}' has no modality")
    dims = {name: store.dims[name] for name in train.modalities}
    if dims != train.dims:
        raise CalmrlError(f"warm-up store '{config.warm_up}' has dimensions {dims}, the training store has {train.dims}")
    columns = [store.modalities.index(name) for name in train.modalities]
    mask, keep = apply_scenario(config.warm_up_scenario, store.ids, train.modalities, store.mask[:, columns], config.seed)
    complete = np.flatnonzero((splits_of(store, config) == "train") & keep & mask.all(axis=1))
    if not len(complete):
        raise CalmrlError(
            f"warm-up store '{config.warm_up}' has no complete training item"
            + ("" if config.warm_up_scenario == "full" else f" under scenario '{config.warm_up_scenario}'")
        )
    return load_table(store, train.modalities, device, complete)


def _components(config: TrainConfig) -> int:
    """How many values kernel feature maps make of the features of a modality; 0 where `config` has none."""
    if config.features == "kernel" or (config.init == "ppca" and config.init_options.get("kernel", "none") != "none"):
        return COMPONENTS
    return 0


def splits_of(store: FeatureStore, config: TrainConfig) -> np.ndarray:
    """The split of every item [N] of `store`: its own, or drawn anew by `config.split_seed`."""
    if config.split_seed is None:
        return np.asarray(store.split)
    from calmrl_lab.store.splits import assign_splits

    return assign_splits(store.group, seed=config.split_seed)


def training_positions(
    full: Table, split: np.ndarray, config: TrainConfig, path: str | None = None
) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, "n k"]]:
    """Positions of the training items in `full`, and what the scenario shows of them; items that show nothing are left out.

    Raises CalmrlError for a store without training or validation items, and for a scenario that leaves none.
    """
    store = path or config.store
    train = np.flatnonzero(split == "train")
    if len(train) == 0:
        raise CalmrlError(f"store '{store}' has no training items", hint="its split has no 'train'; use --set split_seed=0")
    if not (split == "validation").any():
        raise CalmrlError(
            f"store '{store}' has no validation items, and models are selected on validation only",
            hint="re-draw the split with --set split_seed=0",
        )
    scenario = config.scenarios.get(store, config.scenario)
    mask, keep = apply_scenario(scenario, full.ids[train], full.modalities, full.mask.cpu().numpy()[train], config.seed)
    keep &= mask.any(axis=1)
    if not keep.any():
        raise CalmrlError(f"scenario '{scenario}' leaves no training item of store '{store}'")
    return train[keep], mask[keep]


def training_items(full: AnyTable, split: np.ndarray, config: TrainConfig, path: str | None = None) -> AnyTable:
    """The training items as the scenario shows them (`training_positions`)."""
    positions, mask = training_positions(full, split, config, path)
    # Selected once: the rows of a table in memory are copied.
    return full.select(positions).with_mask(mask)
