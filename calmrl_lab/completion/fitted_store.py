"""An imputer fitted to the items of a store, ready to fill its gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from calmrl_lab.completion.item_rows import BLOCK, ItemRows
from calmrl_lab.data.patterns import observe
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers.base import Imputer
from calmrl_lab.ppca.held_out import split_by_group
from calmrl_lab.ppca.statistics import Statistics, observed_means
from calmrl_lab.runtime import console
from calmrl_lab.runtime.progress import progress
from calmrl_lab.store import FeatureStore

# Items that an imputer is fitted to that needs all its rows at once.
SAMPLED = 50_000


@dataclass(frozen=True)
class Prepared:
    """An imputer fitted on the items `fitted` [n] (bool) of a store, and the `rows` of all its items."""

    store: FeatureStore
    imputer: Imputer
    rows: ItemRows
    fitted: Bool[np.ndarray, " n"]

    @property
    def names(self) -> tuple[str, ...]:
        return self.rows.names

    @property
    def mask(self) -> Bool[np.ndarray, "n k"]:
        return self.rows.mask

    @cached_property
    def variances(self) -> Float[np.ndarray, " k"]:
        """Total variance of every modality over the fitted items: the squared error of mean imputation. 1 where it is 0."""
        variance = np.array([variance.sum() for _, variance in self.rows.moments(np.flatnonzero(self.fitted))])
        return np.where(variance > 0, variance, 1.0)


def prepare(
    store: FeatureStore | str | Path,
    imputer: str | Imputer,
    options: Mapping[str, Any],
    modalities: Sequence[str] | None,
    fit_split: str,
    standardise: bool,
) -> Prepared:
    """The store's rows, and the imputer fitted on its split `fit_split`. Raises CalmrlError as `complete_store` does."""
    store = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
    names = tuple(modalities or store.modalities)
    columns = [store.column(name) for name in names]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise CalmrlError(f"modality '{twice[0]}' is named twice", hint=f"the store has: {', '.join(store.modalities)}")
    chosen = _make(imputer, options, names)
    mask = store.mask[:, columns]
    fitted = (store.split == fit_split) & mask.any(axis=1)
    if not fitted.any():
        raise CalmrlError(
            f"store '{store.path}' has no items in split '{fit_split}'", hint=f"it has: {', '.join(np.unique(store.split))}"
        )
    items = np.flatnonzero(fitted)
    rows = ItemRows(store, names, mask, (None,) * len(names))
    rows = replace(rows, scales=rows.range_scales(items[:BLOCK]))
    if standardise:
        spreads = [np.sqrt(variance) for _, variance in rows.moments(items)]
        rows = replace(
            rows,
            scales=tuple(
                np.where(spread > 0, spread, 1.0) * (1.0 if unit is None else unit)
                for spread, unit in zip(spreads, rows.scales, strict=True)
            ),
        )
    _fit(chosen, rows, items, store.group)
    return Prepared(store, chosen, rows, fitted)


def _fit(imputer: Any, rows: ItemRows, items: Int[np.ndarray, " n"], groups: np.ndarray) -> None:
    """Fit `imputer` to `items`: on statistics summed over blocks where these are all it needs, else on rows, at most 50,000 of them."""
    if len(items) > BLOCK and getattr(imputer, "fits_on_folds", False):
        fold = split_by_group(len(items), imputer.folds, groups[items], imputer.seed)
        imputer.fit_folds(_summed(imputer, rows, items, fold))
    elif len(items) > BLOCK and getattr(imputer, "fits_on_statistics", False):
        imputer.fit_statistics(_summed(imputer, rows, items, np.zeros(len(items), dtype=np.int64))[0])
    else:
        if len(items) > SAMPLED:
            console.note(f"imputer '{imputer.name}' is fitted to {SAMPLED} of {len(items)} items, drawn at random")
            items = items[np.sort(np.random.default_rng(0).permutation(len(items))[:SAMPLED])]
        settings = {"groups": groups[items]} if imputer.takes_groups else {}
        with progress(f"fitting {imputer.name} to {len(items)} items"):
            imputer.fit(rows.of(items), rows.mask[items], **settings)


def _summed(imputer: Imputer, rows: ItemRows, items: np.ndarray, fold: Int[np.ndarray, " n"]) -> list[Statistics]:
    """Statistics of every fold, all in the same coordinates, from one pass over blocks of items."""
    parts: list[Statistics] = []
    with progress(f"statistics for {imputer.name}", len(items)) as task:
        for start in range(0, len(items), BLOCK):
            block = slice(start, start + BLOCK)
            data = observe(rows.of(items[block]), rows.mask[items[block]], rows.names)
            if not parts:
                shift = observed_means(data)
                parts = [Statistics(data.dims, shift, data.device) for _ in range(int(fold.max()) + 1)]
            for index, part in enumerate(parts):
                inside = np.flatnonzero(fold[block] == index)
                part.add(data if len(parts) == 1 else data.take(torch.from_numpy(inside)))
            task.advance(len(data))
    return parts


def predicts(imputer: Imputer) -> bool:
    """Whether `imputer` predicts its squared errors."""
    return hasattr(imputer, "predicted_error")


def predicted_errors(imputer: Any, rows: list[np.ndarray], mask: Bool[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Expected squared error of what `imputer`, which `predicts`, fills in."""
    return np.asarray(imputer.predicted_error(rows, mask))


def _make(imputer: str | Imputer, options: Mapping[str, Any], names: tuple[str, ...]) -> Imputer:
    if isinstance(imputer, str):
        imputer = imputers.create(imputer, **options)
    assert isinstance(imputer, Imputer)
    if not imputer.fills:
        raise CalmrlError(f"imputer '{imputer.name}' fills no gaps", hint="see calmrl-lab list imputers")
    imputer.modalities = names
    return imputer
