"""An imputer fitted to the items of a store, ready to fill its gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers.base import Imputer
from calmrl_lab.store import FeatureStore

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Prepared:
    """An imputer fitted on the items `fitted` of a store, and all its `rows` (k of [n, d_m], scaled where `scales` says so)."""

    store: FeatureStore
    names: tuple[str, ...]
    imputer: Imputer
    rows: list[np.ndarray]
    scales: list[np.ndarray | None]
    mask: Bool[np.ndarray, "n k"]
    fitted: Bool[np.ndarray, " n"]

    @property
    def variances(self) -> Float[np.ndarray, " k"]:
        """Total variance of every modality over the fitted items: the squared error of mean imputation. 1 where it is 0."""
        shown = [values[self.fitted & self.mask[:, j]] for j, values in enumerate(self.rows)]
        variance = np.array([values.var(axis=0, dtype=np.float64).sum() for values in shown])
        return np.where(variance > 0, variance, 1.0)


def prepare(
    store: FeatureStore | str | Path,
    imputer: str | Imputer,
    options: Mapping[str, Any],
    modalities: Sequence[str] | None,
    fit_on: str,
    standardise: bool,
) -> Prepared:
    """The store's rows, and the imputer fitted on its split `fit_on`. Raises CalmrlError as `complete_store` does."""
    store = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
    names = tuple(modalities or store.modalities)
    columns = [store.column(name) for name in names]
    chosen = _make(imputer, options, names)
    mask = store.mask[:, columns]
    fitted = (store.split == fit_on) & mask.any(axis=1)
    if not fitted.any():
        raise CalmrlError(
            f"store '{store.path}' has no items in split '{fit_on}'", hint=f"it has: {', '.join(np.unique(store.split))}"
        )
    rows = [_first_rows(store, name, mask[:, j]) for j, name in enumerate(names)]
    scales = [_scale(values[fitted & mask[:, j]]) if standardise else None for j, values in enumerate(rows)]
    scaled = [values if scale is None else values / scale for values, scale in zip(rows, scales, strict=True)]
    groups = {"groups": store.group[fitted]} if chosen.takes_groups else {}
    chosen.fit([values[fitted] for values in scaled], mask[fitted], **groups)
    return Prepared(store, names, chosen, scaled, scales, mask, fitted)


def predicts(imputer: Imputer) -> bool:
    """Whether `imputer` says how wrong it expects to be."""
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


def _first_rows(store: FeatureStore, name: str, shown: Bool[np.ndarray, " n"]) -> Float[np.ndarray, "n d"]:
    """The first row of `name` of every item, zeros where it has none; float32 unless stored as float64."""
    features = store.features(name)
    kind = np.float64 if features.dtype == np.float64 else np.float32
    rows = np.zeros((len(store), store.dims[name]), dtype=kind)
    rows[shown] = features[store.offsets(name)[:-1][shown]]
    return rows


def _scale(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
    spread = rows.std(axis=0, dtype=np.float64)
    return np.where(spread > 0, spread, 1.0).astype(rows.dtype)
