"""Tables of items with gaps: what training, imputers and evaluation read features from, in memory (`FeatureTable`) or not (`StreamedTable`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from calmrl_lab.data.patterns import Patterns, require_hiding
from calmrl_lab.errors import CalmrlError
from calmrl_lab.linalg.floating_range import to_float32
from calmrl_lab.runtime.devices import send

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore


class FeatureBatch(NamedTuple):
    """`items` [b]: positions in the table it came from; `features`: k of [b, d_m], zeros where missing; `mask` [b, k]: what may be shown,
    and `host_mask` the same in host memory.
    """

    items: Int[Tensor, " b"]
    features: list[Tensor]
    mask: Bool[Tensor, "b k"]
    host_mask: Bool[Tensor, "b k"]


# Items whose rows are turned into float32, embedded or read from a store at once.
BLOCK = 16_384


class Table(Protocol):
    """N items of k modalities with gaps. Their rows are in memory, or read when they are needed; ids, groups and the mask are in memory.

    `mask` [N, k] (bool, True = observed) is what may be shown: a scenario can hide a modality whose rows are there, and they serve
    evaluation. Results do not depend on which kind of table holds the items, up to the rounding of sums and the order of batches.
    """

    @property
    def modalities(self) -> tuple[str, ...]: ...

    @property
    def ids(self) -> np.ndarray: ...

    @property
    def group(self) -> np.ndarray: ...

    @property
    def mask(self) -> Bool[Tensor, "n k"]: ...

    @property
    def dims(self) -> dict[str, int]:
        """d_m of every modality."""
        ...

    def __len__(self) -> int: ...

    def natural_mask(self) -> Bool[Tensor, "n k"]:
        """True where an item owns at least one row, whatever a scenario hides."""
        ...

    def with_mask(self, mask: np.ndarray | Tensor) -> Self:
        """The same items showing less. Raises CalmrlError for a mask that shows what an item does not own."""
        ...

    def select(self, items: np.ndarray) -> Self:
        """The items at positions `items` [n] of this table."""
        ...

    def mapped(self, maps: Sequence[Callable[[Tensor], Tensor]]) -> Self:
        """The same items with what `maps`, one per modality, make of their rows."""
        ...

    def in_memory(self) -> FeatureTable:
        """The same items with their rows in memory."""
        ...

    def sample(self, count: int) -> FeatureTable:
        """At most `count` items, in memory, in the order of the table; which ones depends on nothing but the number of items."""
        ...

    def blocks(self) -> Iterator[FeatureTable]:
        """All items in order, in parts of at most `BLOCK` neighbours that are in memory one at a time."""
        ...

    def batches(
        self, size: int, generator: torch.Generator, by_pattern: bool = False, repeats: Tensor | None = None
    ) -> Iterator[FeatureBatch]:
        """One pass in random order, `size` items at a time; a last batch of one item is joined to the one before it.

        `by_pattern`: every batch is of items that show the same modalities, in random order of the batches. `repeats` [N]: how often each
        item comes in this pass (default: once).
        """
        ...


@dataclass(frozen=True)
class FeatureTable:
    """The features of some items and modalities of a store, in memory on one device.

    `rows[j]` [R_j, d_j] are all rows of modality j, float32, or float16 as they were stored: batches, first rows and blocks of rows are
    float32. Item i owns rows `offsets[j][i]:offsets[j][i+1]`. `mask` and methods: see `Table`.
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

    @cached_property
    def _several(self) -> tuple[bool, ...]:
        """For each modality, whether any item owns more than one row. Looked up once: the answer makes a GPU wait."""
        return tuple(bool((offsets.diff() > 1).any()) for offsets in self.offsets)

    def natural_mask(self) -> Bool[Tensor, "n k"]:
        """True where an item owns at least one row, whatever a scenario hides."""
        return torch.stack([offsets.diff() > 0 for offsets in self.offsets], dim=1)

    def with_mask(self, mask: np.ndarray | Tensor) -> FeatureTable:
        """The same rows under another mask. Raises CalmrlError for one that shows what an item does not own."""
        mask = torch.as_tensor(mask, device=self.mask.device)
        require_hiding(mask, self.natural_mask(), self.modalities)
        return FeatureTable(self.modalities, self.ids, self.group, self.rows, self.offsets, mask)

    def on(self, device: torch.device | str) -> FeatureTable:
        """The same table on `device`."""
        rows, offsets = (tuple(part.to(device) for part in parts) for parts in (self.rows, self.offsets))
        return FeatureTable(self.modalities, self.ids, self.group, rows, offsets, self.mask.to(device))

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

    def mapped(self, maps: Sequence[Callable[[Tensor], Tensor]]) -> FeatureTable:
        """The same items with what `maps`, one per modality, make of their rows."""
        return replace(self, rows=tuple(one(rows) for one, rows in zip(maps, self.rows, strict=True)))

    def first_rows(self) -> list[Tensor]:
        """Each item's first row of each modality, zeros where it has none: k of [N, d_m]."""
        everything = torch.arange(len(self), device=self.mask.device)
        return self.gather(everything, None)

    def gather(self, items: Int[Tensor, " b"], generator: torch.Generator | None) -> list[Tensor]:
        """One row per item and modality, padded with zeros: the first, or a random one of several with a generator."""
        features = []
        for rows, offsets, several in zip(self.rows, self.offsets, self._several, strict=True):
            start, count = offsets[items], offsets[items + 1] - offsets[items]
            if generator is None or not several:
                chosen = start
            else:
                draw = send(torch.rand(len(items), generator=generator, dtype=torch.float64), start.device)
                chosen = start + (draw * count).floor().long().clamp_max((count - 1).clamp_min(0))
            if rows.shape[0] == 0:
                features.append(rows.new_zeros(len(items), rows.shape[1], dtype=torch.float32))
                continue
            picked = rows[chosen.clamp_max(rows.shape[0] - 1)].float()
            features.append(picked.masked_fill((count == 0).unsqueeze(1), 0.0))
        return features

    def batches(
        self, size: int, generator: torch.Generator, by_pattern: bool = False, repeats: Tensor | None = None
    ) -> Iterator[FeatureBatch]:
        """One pass in random order, `size` items at a time; a last batch of one item is joined to the one before it.

        `by_pattern`: every batch is of items that show the same modalities, in random order of the batches. `repeats` [N]: how often each item
        comes in this pass (default: once).
        """
        every = torch.arange(len(self)) if repeats is None else torch.repeat_interleave(torch.arange(len(self)), repeats)
        order = every[torch.randperm(len(every), generator=generator)]
        mask = self.mask.cpu()
        for chosen in _by_pattern(order, mask, size, generator) if by_pattern else _cut(order, size):
            items = send(chosen, self.mask.device)
            yield FeatureBatch(items, self.gather(items, generator), self.mask[items], mask[chosen])

    def blocks(self, size: int | None = None) -> Iterator[FeatureTable]:
        """The items in order, in parts of at most `size` neighbours (default: `BLOCK`); a table that is no larger is its own and only part."""
        size = BLOCK if size is None else size
        if len(self) <= size:
            yield self
            return
        for start in range(0, len(self), size):
            yield self.select(np.arange(start, min(start + size, len(self))))

    def in_memory(self) -> FeatureTable:
        """The table with its rows in memory: itself."""
        return self

    def sample(self, count: int) -> FeatureTable:
        """At most `count` items in the order of the table; which ones depends on nothing but the number of items."""
        return self if len(self) <= count else self.select(sampled(len(self), count))


def sampled(items: int, count: int) -> Int[np.ndarray, " count"]:
    """Positions of `count` of `items` items, ascending: always the same ones."""
    return np.sort(np.random.default_rng(0).permutation(items)[:count])


def _cut(order: Int[Tensor, " n"], size: int) -> list[Int[Tensor, " b"]]:
    edges = list(range(0, len(order), size))
    if len(edges) > 1 and len(order) - edges[-1] == 1:
        edges.pop()
    return [order[start:stop] for start, stop in zip(edges, [*edges[1:], len(order)], strict=True)]


def _by_pattern(
    order: Int[Tensor, " n"], mask: Bool[Tensor, "m k"], size: int, generator: torch.Generator
) -> list[Int[Tensor, " b"]]:
    batches = [part for pattern in Patterns.of(mask[order]) for part in _cut(order[pattern.rows], size)]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def group_numbers(groups: np.ndarray, device: str = "cpu") -> Int[Tensor, " n"]:
    """A number per group: equal for items of the same one."""
    return torch.from_numpy(np.unique(groups, return_inverse=True)[1].ravel().astype(np.int64)).to(device)


def joined(tables: Sequence[FeatureTable], names: Sequence[str]) -> FeatureTable:
    """The items of several tables of the same modalities and dimensions, one after the other; `names` go before ids and groups."""
    first = tables[0]
    rows = tuple(torch.cat([table.rows[j] for table in tables]) for j in range(len(first.modalities)))
    offsets = []
    for j in range(len(first.modalities)):
        counts = torch.cat([table.offsets[j].diff() for table in tables])
        offsets.append(torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
    ids, groups = (
        np.concatenate([[f"{name}{value}" for value in values] for name, values in zip(names, columns, strict=True)])
        for columns in ([table.ids for table in tables], [table.group for table in tables])
    )
    return FeatureTable(first.modalities, ids, groups, rows, tuple(offsets), torch.cat([table.mask for table in tables]))


def chosen_modalities(store: FeatureStore, modalities: Sequence[str] | None) -> tuple[str, ...]:
    """The modalities that were named, or all of the store. Raises CalmrlError for one the store does not have, a repeated one, or fewer than two."""
    names = tuple(modalities or store.modalities)
    for name in names:
        store.column(name)
    if len(set(names)) != len(names):
        raise CalmrlError(f"a modality is named twice: {', '.join(names)}")
    if len(names) < 2:
        raise CalmrlError(f"alignment needs at least two modalities, got {len(names)}")
    return names


def load_table(
    store: FeatureStore,
    modalities: Sequence[str] | None = None,
    device: str = "cpu",
    items: Int[np.ndarray, " n"] | None = None,
    dims: Mapping[str, int] | None = None,
) -> FeatureTable:
    """Items of `store` (default: all) with the given modalities (default: all) on `device`, float32, or float16 where stored so; only their
    rows are read.

    `dims`: modalities, with their dimensions, of which the store may lack some: then no item shows them. Raises CalmrlError as
    `chosen_modalities`, and for a dimension other than that in `dims`.
    """
    names = tuple(dims) if dims is not None else chosen_modalities(store, modalities)
    if dims is not None:
        for name, dim in dims.items():
            if name in store.modalities and store.dims[name] != dim:
                raise CalmrlError(f"'{name}' has dimension {store.dims[name]} in store '{store.path}', expected {dim}")
    count = len(store) if items is None else len(items)
    rows, offsets = [], []
    for name in names:
        if name not in store.modalities:
            assert dims is not None
            rows.append(torch.zeros(0, dims[name], device=device))
            offsets.append(torch.zeros(count + 1, dtype=torch.int64, device=device))
            continue
        starts = np.asarray(store.offsets(name), dtype=np.int64)
        if items is None:
            values = store.features(name)
        else:
            lengths = np.diff(starts)[items]
            ends = np.concatenate([[0], np.cumsum(lengths)])
            inside = np.repeat(starts[:-1][items] - ends[:-1], lengths) + np.arange(ends[-1])
            values, starts = store.rows(name, inside), ends
        kept = np.asarray(values) if values.dtype == np.float16 else to_float32(values, name)
        rows.append(torch.from_numpy(kept).to(device))
        offsets.append(torch.from_numpy(starts).to(device))
    chosen = slice(None) if items is None else items
    shown = np.zeros((count, len(names)), dtype=bool)
    for j, name in enumerate(names):
        if name in store.modalities:
            shown[:, j] = store.mask[chosen, store.modalities.index(name)]
    mask = torch.from_numpy(shown).to(device)
    return FeatureTable(
        names, np.asarray(store.ids)[chosen], np.asarray(store.group)[chosen], tuple(rows), tuple(offsets), mask
    )
