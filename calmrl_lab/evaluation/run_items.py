"""The items that a finished run is evaluated on: its store or another one, split as the run split it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from calmrl_lab.config import SIMILARITY_WORDS
from calmrl_lab.data.streaming_table import table_for
from calmrl_lab.data.table import FeatureTable, Table
from calmrl_lab.data.training_data import splits_of, training_items
from calmrl_lab.errors import CalmrlError
from calmrl_lab.model.alignment_model import AlignmentModel
from calmrl_lab.runs.run import Run
from calmrl_lab.runtime import console
from calmrl_lab.runtime.devices import resolve
from calmrl_lab.training.online_imputer import OnlineImputer

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore


@dataclass(frozen=True)
class RunItems:
    """All items of a store, their features as `table` (read when they are needed) and the split of each item as `splits` [N]."""

    store: FeatureStore
    table: Table
    splits: np.ndarray

    def positions(self, split: str | None) -> Int[np.ndarray, " n"]:
        """Positions of the items of one split (None: of all). Raises CalmrlError if there are none."""
        chosen = np.arange(len(self.table)) if split is None else np.flatnonzero(self.splits == split)
        if len(chosen) == 0:
            raise CalmrlError(
                f"store '{self.store.path}' has no items in split '{split}'",
                hint=f"it has: {', '.join(np.unique(self.splits))}",
            )
        return chosen

    def of(self, split: str | None) -> FeatureTable:
        """The items of one split (None: all), in memory. Raises CalmrlError if there are none."""
        return self.table.select(self.positions(split)).in_memory()

    def labels(self, split: str | None) -> dict[str, np.ndarray]:
        """The labels of the same items, by the name of the label."""
        chosen = self.positions(split)
        return {name: np.asarray(values)[chosen] for name, values in self.store.labels.items()}


def open_run(
    run: Run | Path | str, store: FeatureStore | Path | str | None = None, device: str = "auto"
) -> tuple[Run, AlignmentModel, RunItems]:
    """A finished run, what it learned (on `device`), and the items of the store that it was trained on, or of `store`.

    Raises CalmrlError for an unfinished run, a store that has changed since it was trained on, and one that does not fit the model.
    """
    from calmrl_lab.store import FeatureStore

    run = run if isinstance(run, Run) else Run.open(run)
    model, config = run.model().to(resolve(device)), run.config
    source = store if isinstance(store, FeatureStore) else FeatureStore.open(config.store if store is None else store)
    if store is None and source.digest != run.summary["store"]["digest"]:
        raise CalmrlError(
            f"store '{config.store}' has changed since run '{run.path}' was trained on it",
            hint="train the run again, or name the store with --store",
        )
    table = table_for(source, model.dims, str(model.device))
    return run, model, RunItems(source, table, splits_of(source, config))


def imputer_of(run: Run, model: AlignmentModel, items: RunItems, name: str | None = None) -> Any | None:
    """The imputer that the run fitted; with a name, that one fitted afterwards to the training embeddings as the run's scenario showed them.

    None if the run trained without one, or filled nothing, and no name is given.
    """
    config = run.config
    if name is None or (model.imputer is not None and name == config.impute):
        return model.imputer
    validation = items.table.select(np.flatnonzero(items.splits == "validation")).in_memory()
    shown = training_items(items.table, items.splits, config)
    online = OnlineImputer(name, {}, model.modalities, validation.mapped(model.feature_maps))
    online.refresh(model.projection, shown.mapped(model.feature_maps), config.first_iterations)
    return online.noise_scaled


def note_comparison(run: Run | Path | str, what: str) -> None:
    """A note for runs that do not compare pairs by cosine, where a command does."""
    run = run if isinstance(run, Run) else Run.open(run)
    if run.config.similarity != "cosine":
        console.note(f"run '{run.name}' compares pairs by {SIMILARITY_WORDS[run.config.similarity]}; {what}")
