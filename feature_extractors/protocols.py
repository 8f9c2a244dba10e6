"""What a dataset gives and what an encoder takes: media, items, manifests, encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Float32, UInt8

# Reasons a medium fails, as written to failures.jsonl.
REASON_CODES = (
    "not_found",
    "empty_file",
    "not_media",
    "no_stream",
    "truncated",
    "decode_error",
    "too_short",
    "timeout",
    "worker_crash",
    "encode_error",
    "nan_output",
    "outside_media",
)


class MediaError(Exception):
    """A medium that cannot be used; `code` is one of REASON_CODES. Never replaced by a placeholder."""

    def __init__(self, code: str, detail: str) -> None:
        assert code in REASON_CODES, code
        super().__init__(detail)
        self.code = code
        self.detail = detail

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.code, self.detail)


class AbsentError(Exception):
    """The medium turns out not to have this modality by nature (a clip without an audio track): reason 1, not a failure."""


@dataclass(frozen=True)
class Text:
    """A text medium (caption, subtitle, name)."""

    text: str


@dataclass(frozen=True)
class File:
    """A media file: image, audio or video, told apart by content, never by its ending."""

    path: Path


@dataclass(frozen=True)
class Image:
    """Pixels already in memory. `pixels` uint8 [height, width, 3], RGB."""

    pixels: UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Waveform:
    """Sound already in memory. `samples` float32 [channels, time] in [-1, 1]; `rate` in Hz."""

    samples: Float32[np.ndarray, "channels time"]
    rate: int


@dataclass(frozen=True)
class Vector:
    """Values that are features already. `values` float32 [d_m]."""

    values: Float32[np.ndarray, " d_m"]


class Recipe(Protocol):
    """A medium made on demand (an SVG to render, a name to speak): `make` runs in the worker, on the CPU.

    Recipes are small, picklable and deterministic; their `repr` enters the digest of the manifest.
    """

    def make(self) -> Text | Image | Waveform | Vector: ...


@dataclass(frozen=True)
class OrSilence:
    """A medium in whose place, where it is missing, silence or an empty text is encoded, as released evaluations do. None: it is missing."""

    medium: Text | File | None


Medium = Text | File | Image | Waveform | Vector | Recipe | OrSilence


def bare(medium: Medium) -> Medium | None:
    """The medium without what is put in its place where it is missing."""
    return medium.medium if isinstance(medium, OrSilence) else medium


@dataclass(frozen=True)
class Item:
    """One instance and its media. A modality without media is absent by nature; several media are several rows (captions)."""

    id: str
    split: str
    media: Mapping[str, Sequence[Medium]]
    group: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The items of a dataset in their fixed order, and what the store says about them."""

    dataset: str
    licence: str
    attribution: str
    modalities: tuple[str, ...]
    items: tuple[Item, ...]


class Dataset(Protocol):
    """A dataset: one class in one file, registered by name.

    `presets` maps a preset name (`demo`, `vast-paper`, ...) to {modality: encoder name}; the first one is the default.
    `media` is the folder the user gave with --media (None if none); files outside it are refused.
    """

    presets: ClassVar[Mapping[str, Mapping[str, str]]]

    def __init__(self, media: Path | None = None, **options: Any) -> None: ...

    def manifest(self) -> Manifest: ...


class Encoder(Protocol):
    """A frozen encoder of one kind of medium, pooled, before projection.

    `fingerprint` is the sha256 over weights, architecture and every preprocessing setting: two stores with equal fingerprints hold
    comparable features. `prepare` runs on the CPU (in worker processes) and raises MediaError or AbsentError; `encode` runs on the
    device. Batches are cut at fixed places, whatever the number of workers; still, a result should not depend on its batch.
    A `dimension` of 0 means: as long as the vectors that come in.
    `weights` is the folder given with --weights. `heads` are the encoder's own projection weights by name ([512, dimension]), or empty.
    """

    dimension: int
    fingerprint: str

    def __init__(self, device: str = "cpu", weights: Path | None = None, **options: Any) -> None: ...

    def prepare(self, medium: Medium) -> np.ndarray: ...

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "batch dimension"]: ...

    def heads(self) -> Mapping[str, np.ndarray]: ...
