"""The features of items of a store, by id: the queries of a search."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import nearest
from calmrl_lab.search.index_folder import Gallery, encoder_of

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore


class ItemFeatures:
    """Looks up the rows of items in `store` (default: the store that was indexed), which is opened at the first look."""

    def __init__(self, gallery: Gallery, store: Path | None = None) -> None:
        self._gallery = gallery
        self._path = store or gallery.facts["store"]["path"]

    @cached_property
    def _store(self) -> FeatureStore:
        from calmrl_lab.store import FeatureStore

        return FeatureStore.open(self._path)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self._store.ids.tolist())}

    def __call__(self, modality: str, item: str) -> Float[np.ndarray, "n d_m"]:
        """All rows that an item has of a modality. Raises CalmrlError for an unknown item or modality, features of another encoder than the index
        was built from, and an item without any."""
        source = self._store
        if item not in self._places:
            raise CalmrlError(f"store '{source.path}' has no item '{item}'{nearest(item, list(self._places))}")
        source.column(modality)
        if modality in self._gallery.modalities and encoder_of(source, modality) != self._gallery.facts["encoders"][modality]:
            raise CalmrlError(
                f"'{modality}' of store '{source.path}' comes from another encoder than that of the indexed items",
                hint="--store: the store that was indexed, or one of the same encoders",
            )
        place = self._places[item]
        start, stop = (int(edge) for edge in source.offsets(modality)[place : place + 2])
        if start == stop:
            raise CalmrlError(f"item '{item}' has no {modality}", hint="choose another modality of it: --modality")
        return source.feature_range(modality, start, stop)
