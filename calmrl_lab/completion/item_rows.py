"""The first rows of the items of a store, read a block of items at a time: what an imputer is fitted to and fills."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from calmrl_lab.linalg.floating_range import range_scale
from calmrl_lab.runtime.progress import tracked

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore

# Items that are read, fitted to or filled at once.
BLOCK = 16_384


@dataclass(frozen=True)
class ItemRows:
    """The items of `store` with the modalities `names`, of which `mask` [N, k] (bool, True = observed) are there.

    Rows are divided by `scales` (k of [d_m], or None for a modality whose rows stay as they are).
    """

    store: FeatureStore
    names: tuple[str, ...]
    mask: Bool[np.ndarray, "n k"]
    scales: tuple[Float[np.ndarray, " d"] | None, ...]

    def __len__(self) -> int:
        return len(self.mask)

    def of(self, items: Int[np.ndarray, " b"]) -> list[Float[np.ndarray, "b d"]]:
        """The first row of every modality of the items at `items`, zeros where an item has none; float32 unless stored as float64."""
        return [self._modality(j, items) for j in range(len(self.names))]

    def blocks(self, chosen: Int[np.ndarray, " n"]) -> Iterator[Int[np.ndarray, " b"]]:
        """The positions `chosen`, `BLOCK` at a time."""
        for start in range(0, len(chosen), BLOCK):
            yield chosen[start : start + BLOCK]

    def _modality(self, j: int, items: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b d"]:
        name, shown = self.names[j], self.mask[items, j]
        kind = np.float64 if self.store.spec(name).dtype == "float64" else np.float32
        rows = np.zeros((len(items), self.store.dims[name]), dtype=kind)
        rows[shown] = self.store.rows(name, self.store.offsets(name)[:-1][items[shown]])
        scale = self.scales[j]
        if scale is not None:
            rows /= scale.astype(kind)
        return rows

    def range_scales(self, items: Int[np.ndarray, " b"]) -> tuple[Float[np.ndarray, " d"] | None, ...]:
        """The `scales` that bring modalities with features as large as 1e30 or as small as 1e-42 among the items at `items` into the range in
        which float32 computes; None for all others."""
        units = [range_scale(float(np.abs(rows).max(initial=0.0))) for rows in self.of(items)]
        return tuple(
            None if unit == 1 else np.full(self.store.dims[name], unit) for name, unit in zip(self.names, units, strict=True)
        )

    def moments(self, chosen: Int[np.ndarray, " n"]) -> list[tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]]:
        """Mean and variance of every coordinate [d_m] of each modality over the items at `chosen` that show it, float64; zeros if none does."""
        sums: list[list[np.ndarray] | None] = [None] * len(self.names)
        counts = self.mask[chosen].sum(axis=0)
        for items in tracked(self.blocks(chosen), "means and variances", -(-len(chosen) // BLOCK), "blocks"):
            for j, rows in enumerate(self.of(items)):
                shown = rows[self.mask[items, j]].astype(np.float64)
                if not len(shown):
                    continue
                if sums[j] is None:
                    # About the mean of the first block, so that a large mean beside a small spread loses no digits.
                    sums[j] = [shown.mean(axis=0), np.zeros(shown.shape[1]), np.zeros(shown.shape[1])]
                centre, total, square = sums[j]  # type: ignore[misc]
                shown -= centre
                total += shown.sum(axis=0)
                square += np.square(shown).sum(axis=0)
        found = []
        for name, part, count in zip(self.names, sums, counts.tolist(), strict=True):
            if part is None:
                found.append((np.zeros(self.store.dims[name]), np.zeros(self.store.dims[name])))
                continue
            centre, total, square = part
            found.append((centre + total / count, np.maximum(square / count - np.square(total / count), 0.0)))
        return found
