"""Shuffled batches from a store larger than memory: random blocks of items are read into a buffer and mixed there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.schema import CHUNK_ROWS

if TYPE_CHECKING:
    from calmrl_lab.store.reader import FeatureStore

# 1,024 consecutive items are one read of 1 MB per modality: near full speed, yet a buffer holds blocks from all over the store.
BLOCK_ITEMS = 1024
# The first buffer is small, so that the first batch comes at once; each further one is twice as large, up to the limit.
_FIRST_BLOCKS = 8


class StreamBatch(NamedTuple):
    """`items` [b] positions in the store; `features` k of [b, d_m] in the stored dtype, zeros where missing; `mask` [b, k]."""

    items: Int64[np.ndarray, " b"]
    features: list[Float[np.ndarray, "b dimension"]]
    mask: Bool[np.ndarray, "b k"]


def stream(
    store: FeatureStore,
    modalities: Sequence[str] | None = None,
    batch_size: int = 1024,
    seed: int = 0,
    buffer_chunks: int = 4,
    items: Int[np.ndarray, " n"] | Bool[np.ndarray, " n"] | None = None,
) -> Iterator[StreamBatch]:
    """One pass over `items` (default: all) of `store` in random order, `batch_size` at a time; the last batch may be smaller.

    The store is cut into blocks of 1,024 neighbouring items; blocks are drawn in random order into a buffer of
    `buffer_chunks` x 16,384 items (x the summed dimensions x 2 bytes of memory at float16), and the items of a full buffer are
    shuffled among each other. Of several rows of one item and modality, one is drawn. The order depends on `seed` and the
    arguments only. Raises CalmrlError for an unknown modality or sizes below one.
    """
    if batch_size < 1 or buffer_chunks < 1:
        raise CalmrlError(f"batch_size and buffer_chunks must be at least 1, got {batch_size} and {buffer_chunks}")
    names = tuple(store.modalities if modalities is None else modalities)
    for name in names:
        store.column(name)
    wanted = _wanted(items, len(store))
    return _batches(store, names, batch_size, np.random.default_rng(seed), buffer_chunks * CHUNK_ROWS, wanted)


def _wanted(items: np.ndarray | None, n: int) -> Bool[np.ndarray, " n"]:
    wanted = np.ones(n, dtype=bool)
    if items is None:
        return wanted
    chosen = np.asarray(items)
    if chosen.dtype == bool:
        if chosen.shape != (n,):
            raise CalmrlError(f"items is a mask of {len(chosen)}; the store has {n} items")
        return chosen
    if len(chosen) and chosen.dtype.kind not in "iu":
        raise CalmrlError(f"items is {chosen.dtype} {list(chosen.shape)}; expected positions or a mask")
    if len(chosen) and not (chosen.min() >= 0 and chosen.max() < n):
        raise CalmrlError(f"items names positions {int(chosen.min())} to {int(chosen.max())}; the store has 0 to {n - 1}")
    wanted[:] = False
    wanted[chosen] = True
    return wanted


def _batches(
    store: FeatureStore, names: tuple[str, ...], batch_size: int, random: np.random.Generator, capacity: int, wanted: np.ndarray
) -> Iterator[StreamBatch]:
    starts = np.arange(0, len(store), BLOCK_ITEMS)
    occupied = np.add.reduceat(wanted, starts) > 0
    blocks = random.permutation(starts[occupied])
    limit = max(1, capacity // BLOCK_ITEMS)
    # Items left over from one buffer open the first batch of the next, so that all batches but the last are full.
    rest: StreamBatch | None = None
    size = min(_FIRST_BLOCKS, limit)
    while len(blocks):
        buffer = _Buffer(store, names, np.sort(blocks[:size]), wanted)
        blocks, size = blocks[size:], min(2 * size, limit)
        order = random.permutation(buffer.items)
        position = 0
        while position < len(order):
            missing = batch_size - (len(rest.items) if rest else 0)
            batch = buffer.batch(order[position : position + missing], random)
            position += missing
            batch = _join(rest, batch) if rest else batch
            rest = None
            if len(batch.items) == batch_size:
                yield batch
            else:
                rest = batch
    if rest:
        yield rest


class _Buffer:
    """The rows of some blocks in memory. `items` are the wanted items in them, `first` [k][n] where the rows of each begin."""

    def __init__(self, store: FeatureStore, names: tuple[str, ...], starts: np.ndarray, wanted: np.ndarray) -> None:
        ranges = [(int(start), min(int(start) + BLOCK_ITEMS, len(store))) for start in starts]
        inside = np.concatenate([np.arange(low, high) for low, high in ranges])
        self.items = inside[wanted[inside]]
        self._starts = starts
        self._rows, self._moved, self._offsets = [], [], []
        for name in names:
            offsets = store.offsets(name)
            lengths = [int(offsets[high] - offsets[low]) for low, high in ranges]
            places = np.concatenate([[0], np.cumsum(lengths)])
            rows = np.empty((int(places[-1]), store.dims[name]), dtype=store.spec(name).dtype)
            for (low, high), place, length in zip(ranges, places, lengths, strict=False):
                store.feature_range(name, int(offsets[low]), int(offsets[high]), rows[place : place + length])
            self._rows.append(rows)
            # What to add to a row number of the store to find the row in the buffer, a number per block.
            self._moved.append(places[:-1] - offsets[starts])
            self._offsets.append(offsets)

    def batch(self, items: np.ndarray, random: np.random.Generator) -> StreamBatch:
        block = np.searchsorted(self._starts, items, side="right") - 1
        mask = np.empty((len(items), len(self._rows)), dtype=bool)
        features = []
        for column, (rows, moved, offsets) in enumerate(zip(self._rows, self._moved, self._offsets, strict=True)):
            first, count = offsets[items], offsets[items + 1] - offsets[items]
            if count.max(initial=0) > 1:
                first = first + (random.random(len(items)) * count).astype(np.int64)
            observed = count > 0
            mask[:, column] = observed
            if observed.all():
                features.append(rows[first + moved[block]])
                continue
            padded = np.zeros((len(items), rows.shape[1]), dtype=rows.dtype)
            padded[observed] = rows[(first + moved[block])[observed]]
            features.append(padded)
        return StreamBatch(items, features, mask)


def _join(one: StreamBatch, two: StreamBatch) -> StreamBatch:
    return StreamBatch(
        np.concatenate([one.items, two.items]),
        [np.concatenate(pair) for pair in zip(one.features, two.features, strict=True)],
        np.concatenate([one.mask, two.mask]),
    )
