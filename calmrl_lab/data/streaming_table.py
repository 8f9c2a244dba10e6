"""The table of a store whose features stay on the disk: batches, blocks and samples of rows are read when they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from calmrl_lab.data.patterns import require_hiding
from calmrl_lab.data.table import BLOCK, FeatureBatch, FeatureTable, Table, chosen_modalities, load_table, sampled
from calmrl_lab.errors import CalmrlError
from calmrl_lab.linalg.floating_range import to_float32
from calmrl_lab.runtime.devices import send

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore

# A store is kept in memory if what training makes of its features takes at most this share of what is free, and at most so many bytes: a
# stream is nearly as fast as a larger table.
_SHARE = 0.5
_MOST_BYTES = 1_500_000_000


@dataclass(frozen=True)
class StreamedTable:
    """A `Table` of the items at ascending positions `items` [N] of a store; `mask` [N, k] is in memory, as ids and groups are; `maps` are applied to
    the rows of each modality when they are read (`mapped`)."""

    store: FeatureStore
    modalities: tuple[str, ...]
    items: Int[np.ndarray, " n"]
    mask: Bool[Tensor, "n k"]
    device: str = "cpu"
    maps: tuple[Callable[[Tensor], Tensor], ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def ids(self) -> np.ndarray:
        return np.asarray(self.store.ids)[self.items]

    @property
    def group(self) -> np.ndarray:
        return np.asarray(self.store.group)[self.items]

    @property
    def dims(self) -> dict[str, int]:
        return {name: self.store.dims[name] for name in self.modalities}

    def natural_mask(self) -> Bool[Tensor, "n k"]:
        """True where an item owns at least one row, whatever a scenario hides."""
        columns = [self.store.modalities.index(name) for name in self.modalities]
        return torch.from_numpy(np.ascontiguousarray(self.store.mask[self.items][:, columns])).to(self.mask.device)

    def with_mask(self, mask: np.ndarray | Tensor) -> StreamedTable:
        """The same items under another mask. Raises CalmrlError for one that shows what an item does not own."""
        mask = torch.as_tensor(mask, device=self.mask.device)
        require_hiding(mask, self.natural_mask(), self.modalities)
        return replace(self, mask=mask)

    def mapped(self, maps: Sequence[Callable[[Tensor], Tensor]]) -> StreamedTable:
        """The same items with what `maps`, one per modality, make of their rows, block by block as they are read."""
        return replace(self, maps=tuple(maps))

    def select(self, items: np.ndarray) -> StreamedTable:
        """The items at positions `items` [n] of this table, in the order of the store."""
        chosen = np.sort(items)
        return replace(self, items=self.items[chosen], mask=self.mask[torch.from_numpy(chosen).to(self.mask.device)])

    def in_memory(self) -> FeatureTable:
        """All items with their rows."""
        table = load_table(self.store, self.modalities, self.device, self.items).with_mask(self.mask)
        return table.mapped(self.maps) if self.maps else table

    def sample(self, count: int) -> FeatureTable:
        """At most `count` items, in memory; which ones depends on nothing but the number of items."""
        if len(self) <= count:
            return self.in_memory()
        return self.select(sampled(len(self), count)).in_memory()

    def blocks(self) -> Iterator[FeatureTable]:
        """All items in order, in parts of neighbours that are in memory one at a time."""
        for start in range(0, len(self), BLOCK):
            yield self.select(np.arange(start, min(start + BLOCK, len(self)))).in_memory()

    def batches(
        self, size: int, generator: torch.Generator, by_pattern: bool = False, repeats: Tensor | None = None
    ) -> Iterator[FeatureBatch]:
        """As `FeatureTable.batches`, in an order that is random by blocks of neighbours (see `calmrl_lab.store.streaming`).

        Raises CalmrlError for what only a table in memory can do: batches of one pattern, repeated items.
        """
        if by_pattern or repeats is not None:
            raise CalmrlError(
                "a store that is streamed has batches of mixed patterns and every item once per pass",
                hint="use --set memory=table if it fits into memory, or batching=mixed",
            )
        seed = int(torch.randint(2**62, (1,), generator=generator))
        place = np.full(len(self.store), -1, dtype=np.int64)
        place[self.items] = np.arange(len(self))
        mask, device = self.mask.cpu(), self.mask.device
        waiting: FeatureBatch | None = None
        for streamed in self.store.stream(self.modalities, size, seed, items=self.items):
            chosen = torch.from_numpy(place[streamed.items])
            items = send(chosen, device)
            features = [
                send(torch.from_numpy(to_float32(rows, name)), device)
                for name, rows in zip(self.modalities, streamed.features, strict=True)
            ]
            if self.maps:
                features = [one(rows) for one, rows in zip(self.maps, features, strict=True)]
            batch = FeatureBatch(items, features, self.mask[items], mask[chosen])
            if waiting is not None and len(items) == 1:
                # As in memory: a last batch of one item is joined to the one before it.
                batch = FeatureBatch(
                    torch.cat([waiting.items, items]),
                    [torch.cat(pair) for pair in zip(waiting.features, features, strict=True)],
                    torch.cat([waiting.mask, batch.mask]),
                    torch.cat([waiting.host_mask, batch.host_mask]),
                )
                waiting = None
            if waiting is not None:
                yield waiting
            waiting = batch
        if waiting is not None:
            yield waiting


def open_table(
    store: FeatureStore, modalities: Sequence[str] | None, device: str, memory: str = "auto", components: int = 0
) -> Table:
    """All items of `store`: in memory (`table`), read as they are needed (`stream`), or whichever the memory allows (`auto`).

    `components` are the values that a feature map makes of the features of a modality, where it makes more of them than there are.
    """
    names = chosen_modalities(store, modalities)
    allowed = min(_SHARE * free_bytes(), _MOST_BYTES)
    if memory == "table" or (memory == "auto" and needed_bytes(store, names, components) <= allowed):
        return load_table(store, names, device)
    columns = [store.modalities.index(name) for name in names]
    mask = torch.from_numpy(np.ascontiguousarray(store.mask[:, columns])).to(device)
    return StreamedTable(store, names, np.arange(len(store)), mask, device)


def table_for(store: FeatureStore, dims: Mapping[str, int], device: str) -> Table:
    """All items of `store` for heads that take `dims`, their rows read when they are needed: after training they are needed once, or only those of
    a split. A modality that the store lacks is shown by no item; then all rows are in memory.

    Raises CalmrlError for other dimensions, and for a store that has none of these modalities.
    """
    here = [name for name in dims if name in store.modalities]
    found = {name: store.dims[name] for name in here}
    if not here or any(found[name] != dims[name] for name in here):
        raise CalmrlError(f"store '{store.path}' has dimensions {found or store.dims}, the heads of the run take {dict(dims)}")
    if len(here) < len(dims):
        return load_table(store, device=device, dims=dims)
    return open_table(store, tuple(dims), device, "stream")


def needed_bytes(store: FeatureStore, modalities: Sequence[str], components: int = 0) -> int:
    """What training holds at once of the features of `modalities`: all rows as they are stored, those of the training items once more, and as float32
    what a feature map makes of them, `components` values where that is more."""
    stored = {name: 2 if store.spec(name).dtype == "float16" else 4 for name in modalities}
    return sum(
        int(store.offsets(name)[-1]) * (2 * stored[name] * store.dims[name] + 4 * max(store.dims[name], components))
        for name in modalities
    )


def free_bytes() -> int:
    """Memory that can be had without pushing anything out, as the system counts it."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
