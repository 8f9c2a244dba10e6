"""One block of items to one part: media prepared and encoded; every gap with its reason, every failure with its record."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from calmrl_lab.errors import CalmrlError, WorkFailedError, complaint
from calmrl_lab.store import Reason
from feature_extractors.protocols import AbsentError, Encoder, Item, MediaError, Medium, Text
from feature_extractors.shards.shard import Part
from feature_extractors.workers.prepare import Outcome, failure, is_out_of_process

# Media that go through an encoder together. Cuts are at fixed places inside a block, so no result depends on the number of workers.
BATCH = 64


@dataclass(frozen=True)
class Block:
    """Some consecutive items of a manifest.

    `quarantined`: media, by modality and place in `media_of`, that a worker died of, and how. `careful`: encode every medium alone first, so
    that what kills the worker shows.
    """

    number: int
    items: Sequence[Item]
    quarantined: Mapping[tuple[str, int], str] = field(default_factory=dict)
    careful: bool = False


def media_of(items: Sequence[Item], modality: str) -> list[tuple[int, Medium]]:
    """(index of its item, medium) of all media of a modality. Texts of white space are none: that modality is absent there."""
    return [
        (index, medium)
        for index, item in enumerate(items)
        for medium in item.media.get(modality, ())
        if not (isinstance(medium, Text) and not medium.text.strip())
    ]


def out_of_process_media(block: Block, modalities: Sequence[str]) -> Iterator[tuple[str, Medium]]:
    """(modality, medium) of all media that other processes prepare, in the order in which `encode_block` asks for them."""
    for modality in modalities:
        for place, (_, medium) in enumerate(media_of(block.items, modality)):
            if is_out_of_process(medium) and (modality, place) not in block.quarantined:
                yield modality, medium


def encode_block(
    block: Block,
    encoders: Mapping[str, Encoder],
    prepare: Callable[[str, Medium], tuple[Outcome, float]],
    announce: Callable[..., None] = lambda *_: None,
) -> Part:
    """Encode all media of a block, modality by modality (the keys of `encoders`, in their order).

    A medium that cannot be used leaves a gap with a reason, never a placeholder; several media of an item are several rows.
    `prepare(modality, medium)` gives an outcome and the seconds it took, and is called for one medium after the other.
    `announce("at", modality, place, count)` is called before `count` media do something that might kill this process (0: that is over),
    `announce("media", n)` when n further media are through, `announce("spent", modality, media, seconds)` for parts of these as well.
    """
    part = Part({}, {}, np.zeros((len(block.items), len(encoders)), dtype=np.uint8))
    for column, (modality, encoder) in enumerate(encoders.items()):
        work = _Modality(block, modality, encoder, announce)
        owners = media_of(block.items, modality)
        for place, (_, medium) in enumerate(owners):
            work.take(place, medium, prepare)
            if len(work.ready) == BATCH:
                work.encode()
        work.encode()
        counts = np.zeros(len(block.items), dtype=np.int64)
        for place in sorted(work.rows):
            counts[owners[place][0]] += 1
        failed = np.zeros(len(block.items), dtype=bool)
        for place, error in sorted(work.failed.items()):
            index, medium = owners[place]
            failed[index] = True
            part.failures.append(failure(block.items[index].id, modality, medium, error))
        part.reason[:, column] = np.where(counts > 0, Reason.OBSERVED, np.where(failed, Reason.FAILED, Reason.ABSENT))
        part.rows[modality] = (
            np.stack([work.rows[place] for place in sorted(work.rows)])
            if work.rows
            else np.zeros((0, encoder.dimension), np.float32)
        )
        part.counts[modality] = counts
        part.seconds |= {f"{what} {modality}": seconds for what, seconds in work.seconds.items()}
    return part


class _Modality:
    """The media of one modality on their way through a block."""

    def __init__(self, block: Block, modality: str, encoder: Encoder, announce: Callable[..., None]) -> None:
        self.block, self.modality, self.encoder, self.announce = block, modality, encoder, announce
        self.ready: list[tuple[int, np.ndarray]] = []
        self.rows: dict[int, np.ndarray] = {}
        self.failed: dict[int, MediaError] = {}
        self.taken = 0
        self.seconds = {"prepare": 0.0, "wait": 0.0, "encode": 0.0}
        # Media of the batch in hand that were told, since when nothing was, and what preparing one of them took.
        self.told, self.told_at, self.prepared = 0.0, time.monotonic(), 0.0

    def take(self, place: int, medium: Medium, prepare: Callable[[str, Medium], tuple[Outcome, float]]) -> None:
        self.taken += 1
        how = self.block.quarantined.get((self.modality, place))
        if how is not None:
            self.failed[place] = MediaError("worker_crash", how)
            return
        careful = self.block.careful and not is_out_of_process(medium)
        if careful:
            self.announce("at", self.modality, place, 1)
        begun = time.monotonic()
        outcome, seconds = prepare(self.modality, medium)
        if careful:
            self.announce("at", self.modality, place, 0)
        self.seconds["prepare"] += seconds
        self.seconds["wait"] += time.monotonic() - begun
        if isinstance(outcome, MediaError):
            self.failed[place] = outcome
        elif not isinstance(outcome, AbsentError):
            self.ready.append((place, outcome))

    def encode(self) -> None:
        if self.ready:
            with self._observed([array for _, array in self.ready]):
                self._encode([place for place, _ in self.ready], [array for _, array in self.ready])
            self.ready = []
        self._tell(self.taken - self.told)
        self.announce("media", self.taken)
        self.taken, self.told, self.prepared = 0, 0.0, 0.0

    @contextmanager
    def _observed(self, batch: Sequence[np.ndarray]) -> Iterator[None]:
        """While a batch is encoded, its rows that are through are told as fractions of its media (by encoders that encode in pieces)."""
        pieces = getattr(self.encoder, "pieces", None)
        if pieces is None or self.block.careful:
            yield
            return
        rows = sum(len(array) if array.ndim > 1 else 1 for array in batch)
        now = time.monotonic()
        self.prepared, self.told_at = (now - self.told_at) / self.taken, now
        pieces.observer = lambda done: self._tell(min(done / rows * len(batch), self.taken - self.told))
        try:
            yield
        finally:
            pieces.observer = None

    def _tell(self, media: float) -> None:
        now = time.monotonic()
        if media > 0:
            self.announce("spent", self.modality, media, now - self.told_at + self.prepared * media)
            self.told, self.told_at = self.told + media, now

    def _encode(self, places: list[int], batch: list[np.ndarray]) -> None:
        begun = time.monotonic()
        if self.block.careful:
            for place, array in zip(places, batch, strict=True):
                self.announce("at", self.modality, place, 1)
                encode_batch(self.encoder, [array])
        self.announce("at", self.modality, places[0], len(places))
        for place, row in zip(places, encode_batch(self.encoder, batch), strict=True):
            if isinstance(row, MediaError):
                self.failed[place] = row
            elif not np.isfinite(row).all():
                self.failed[place] = MediaError("nan_output", "the encoder returned NaN or infinity")
            else:
                self.rows[place] = row
        self.seconds["encode"] += time.monotonic() - begun


def encode_batch(encoder: Encoder, batch: list[np.ndarray]) -> list[np.ndarray | MediaError]:
    """A row [d_m] for each of a batch, or the error of the ones that the encoder cannot take.

    Where the device runs out of memory the batch is halved and tried again.
    """
    try:
        rows = np.asarray(encoder.encode(batch))
    except CalmrlError:
        raise
    except Exception as error:
        half = len(batch) // 2
        if half and _out_of_memory(error):
            return encode_batch(encoder, batch[:half]) + encode_batch(encoder, batch[half:])
        if not half:
            return [MediaError("encode_error", complaint(error))]
        alone = [encode_batch(encoder, [one])[0] for one in batch]
        good = [one for one, row in zip(batch, alone, strict=True) if not isinstance(row, MediaError)]
        if len(good) == len(batch):
            return alone
        # The others together again: as a batch of theirs would have been without the bad ones.
        together = iter(encode_batch(encoder, good) if good else [])
        return [row if isinstance(row, MediaError) else next(together) for row in alone]
    if rows.ndim != 2 or len(rows) != len(batch) or encoder.dimension not in (0, rows.shape[1]):
        raise WorkFailedError(
            f"{type(encoder).__name__} returned {list(rows.shape)} for a batch of {len(batch)}; expected [{len(batch)}, "
            f"{encoder.dimension or 'd'}]",
            hint="the encoder is at fault, not the media",
        )
    return list(rows if rows.dtype.kind == "f" else rows.astype(np.float32))


def _out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, torch.OutOfMemoryError):
        return False
    torch.cuda.empty_cache()
    return True
