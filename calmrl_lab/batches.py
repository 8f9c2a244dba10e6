"""Items to padded batches: cached features in memory, gathered by index, [B, d_m] a modality with a mask [B, k]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from calmrl_lab.errors import CalmrlError

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore


@dataclass(frozen=True)
class FeatureTable:
    """The features of some items and modalities of a store, in memory on one device.

    `rows[j]` [R_j, d_j] float32 are all rows of modality j; item i owns rows `offsets[j][i]:offsets[j][i+1]`. `mask` [N, k] is what
    may be shown: a scenario can hide a modality whose rows are still here (they serve evaluation).
    """

    modalities: tuple[str, ...]
    ids: np.ndarray
    group: np.ndarray
    rows: tuple[Tensor, ...]
    offsets: tuple[Int[Tensor, " n_plus_1"], ...]
    mask: Bool[Tensor, "n k"]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dims(self) -> dict[str, int]:
        return {name: rows.shape[1] for name, rows in zip(self.modalities, self.rows, strict=True)}

    def natural_mask(self) -> Bool[Tensor, "n k"]:
        """True where an item owns at least one row, whatever a scenario hides."""
        return torch.stack([offsets.diff() > 0 for offsets in self.offsets], dim=1)

    def with_mask(self, mask: np.ndarray | Tensor) -> FeatureTable:
        """The same rows under another mask (never wider than the rows that exist)."""
        mask = torch.as_tensor(mask, device=self.mask.device)
        assert not bool((mask & ~self.natural_mask()).any()), "a mask may hide, never un-hide"
        return FeatureTable(self.modalities, self.ids, self.group, self.rows, self.offsets, mask)

    def select(self, items: np.ndarray) -> FeatureTable:
        """The items at positions `items` [n], their rows copied together in that order."""
        picked = torch.as_tensor(items, device=self.mask.device)
        rows, offsets = [], []
        for all_rows, starts in zip(self.rows, self.offsets, strict=True):
            counts = starts.diff()[picked]
            ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            base = torch.repeat_interleave(starts[:-1][picked] - ends[:-1], counts)
            rows.append(all_rows[base + torch.arange(int(ends[-1]), device=base.device)])
            offsets.append(ends)
        return FeatureTable(self.modalities, self.ids[items], self.group[items], tuple(rows), tuple(offsets), self.mask[picked])

    def first_rows(self) -> list[Tensor]:
        """Each item's first row of each modality, zeros where it has none: k of [N, d_m]."""
        everything = torch.arange(len(self), device=self.mask.device)
        return self.gather(everything, None)

    def gather(self, items: Int[Tensor, " b"], generator: torch.Generator | None) -> list[Tensor]:
        """One row an item and modality, padded with zeros: the first, or a random one of several with a generator."""
        features = []
        for rows, offsets in zip(self.rows, self.offsets, strict=True):
            start, count = offsets[items], offsets[items + 1] - offsets[items]
            if generator is None or rows.shape[0] <= len(self):
                chosen = start
            else:
                draw = torch.rand(len(items), generator=generator, dtype=torch.float64).to(start.device)
                chosen = start + (draw * count).floor().long().clamp_max((count - 1).clamp_min(0))
            if rows.shape[0] == 0:
                features.append(rows.new_zeros(len(items), rows.shape[1]))
                continue
            picked = rows[chosen.clamp_max(rows.shape[0] - 1)]
            features.append(picked.masked_fill((count == 0).unsqueeze(1), 0.0))
        return features

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Int[Tensor, " b"]]:
        """Item positions in random order, `size` at a time; a last batch of one item is joined to the one before it."""
        order = torch.randperm(len(self), generator=generator).to(self.mask.device)
        edges = list(range(0, len(order), size))
        if len(edges) > 1 and len(order) - edges[-1] == 1:
            edges.pop()
        for start, stop in zip(edges, [*edges[1:], len(order)], strict=True):
            yield order[start:stop]


def load_table(store: FeatureStore, modalities: Sequence[str] | None = None, device: str = "cpu") -> FeatureTable:
    """All items of `store` with the given modalities (default: all), float32 on `device`.

    Raises CalmrlError for a modality the store does not have, a repeated one, or fewer than two.
    """
    from calmrl_lab.registry import nearest

    names = tuple(modalities or store.modalities)
    for name in names:
        if name not in store.modalities:
            raise CalmrlError(
                f"store '{store.path}' has no modality '{name}'{nearest(name, list(store.modalities))}",
                hint=f"it has: {', '.join(store.modalities)}",
            )
    if len(set(names)) != len(names):
        raise CalmrlError(f"a modality is named twice: {', '.join(names)}")
    if len(names) < 2:
        raise CalmrlError(f"alignment needs at least two modalities, got {len(names)}")
    rows = tuple(torch.from_numpy(np.asarray(store.features(m), dtype=np.float32)).to(device) for m in names)
    offsets = tuple(torch.from_numpy(np.asarray(store.offsets(m), dtype=np.int64)).to(device) for m in names)
    columns = [store.modalities.index(m) for m in names]
    mask = torch.from_numpy(np.ascontiguousarray(store.mask[:, columns])).to(device)
    return FeatureTable(names, np.asarray(store.ids), np.asarray(store.group), rows, offsets, mask)
