"""One block of items to one part: media made, prepared and encoded; every gap with its reason, every failure with its record."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_lab.store import Reason
from feature_extractors.protocols import AbsentError, Encoder, File, Item, MediaError, Medium, Text

# Media that go through an encoder together. Cuts are at fixed places inside a block, so no result depends on the number of workers.
BATCH = 64


@dataclass
class Part:
    """What a block became. `rows[m]` [r, d_m] are the encoded media of modality m, `counts[m]` [items] how many each item owns."""

    rows: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]
    reason: np.ndarray
    failures: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write beside, flush to disk, rename: a part exists whole or not at all."""
        from safetensors.numpy import save

        tensors = {f"rows.{m}": np.ascontiguousarray(rows) for m, rows in self.rows.items()}
        tensors |= {f"counts.{m}": np.asarray(counts, dtype=np.int64) for m, counts in self.counts.items()}
        notes = {"failures": json.dumps(self.failures), "seconds": json.dumps(self.seconds)}
        data = save({**tensors, "reason": self.reason}, metadata=notes)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(hashlib.sha256(data).digest())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> Part | None:
        """The part at `path`; None if there is none or it is damaged (it is then made again)."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            stored = path.read_bytes()
        except OSError:
            return None
        digest, data = stored[:32], stored[32:]
        if hashlib.sha256(data).digest() != digest:
            return None
        try:
            tensors = load(data)
        except SafetensorError:
            return None
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        named = {
            kind: {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{kind}.")} for kind in ("rows", "counts")
        }
        return cls(
            named["rows"], named["counts"], tensors["reason"], json.loads(header["failures"]), json.loads(header["seconds"])
        )


def encode_block(
    items: Sequence[Item],
    modalities: Sequence[str],
    encoders: Mapping[str, Encoder],
    media: Path | None,
    run: Callable[[Callable[[Medium], np.ndarray], Sequence[Medium]], list[Any]] | None = None,
) -> Part:
    """Encode all media of `items`. A medium that cannot be used leaves a gap with a reason, never a placeholder.

    `run` maps a preparing function over media and returns arrays or exceptions, in order (default: one after the other).
    """
    import time

    reason = np.zeros((len(items), len(modalities)), dtype=np.uint8)
    part = Part({}, {}, reason)
    run = run or _in_order
    for column, modality in enumerate(modalities):
        encoder = encoders[modality]
        owners = [(index, medium) for index, item in enumerate(items) for medium in item.media.get(modality, ())]
        owners = [(i, m) for i, m in owners if not (isinstance(m, Text) and not m.text.strip())]
        begun = time.monotonic()
        outcomes = run(_Preparation(encoder, media), [medium for _, medium in owners])
        prepared = time.monotonic()
        failed = np.zeros(len(items), dtype=bool)
        ready: list[tuple[int, Medium, np.ndarray]] = []
        for (index, medium), outcome in zip(owners, outcomes, strict=True):
            if isinstance(outcome, AbsentError):
                continue
            if isinstance(outcome, MediaError):
                failed[index] = True
                part.failures.append(failure(items[index].id, modality, medium, outcome))
                continue
            ready.append((index, medium, outcome))
        rows: list[np.ndarray] = []
        counts = np.zeros(len(items), dtype=np.int64)
        for start in range(0, len(ready), BATCH):
            batch = ready[start : start + BATCH]
            for (index, medium, _), row in zip(batch, _encode(encoder, [array for *_, array in batch]), strict=True):
                if not np.isfinite(row).all():
                    failed[index] = True
                    part.failures.append(
                        failure(items[index].id, modality, medium, MediaError("nan_output", "the encoder returned NaN"))
                    )
                    continue
                rows.append(row)
                counts[index] += 1
        reason[:, column] = np.where(counts > 0, Reason.OBSERVED, np.where(failed, Reason.FAILED, Reason.ABSENT))
        part.rows[modality] = np.stack(rows) if rows else np.zeros((0, encoder.dimension), dtype=np.float32)
        part.counts[modality] = counts
        part.seconds[f"prepare {modality}"] = prepared - begun
        part.seconds[f"encode {modality}"] = time.monotonic() - prepared
    return part


@dataclass(frozen=True)
class _Preparation:
    encoder: Encoder
    media: Path | None

    def __call__(self, medium: Medium) -> np.ndarray:
        if isinstance(medium, File):
            _inside(medium.path, self.media)
        made = medium.make() if hasattr(medium, "make") else medium
        return self.encoder.prepare(made)


def _inside(path: Path, media: Path | None) -> None:
    """Files outside the media folder are refused, also through `..` or a link: a manifest is somebody else's text."""
    if media is not None and not path.resolve().is_relative_to(media.resolve()):
        raise MediaError("outside_media", "the path leads outside the media folder")
    if not path.is_file():
        raise MediaError("not_found", "no such file")
    if path.stat().st_size == 0:
        raise MediaError("empty_file", "the file is empty")


def _in_order(prepare: Callable[[Medium], np.ndarray], media: Sequence[Medium]) -> list[Any]:
    return [attempt(prepare, medium) for medium in media]


def attempt(prepare: Callable[[Medium], np.ndarray], medium: Medium) -> Any:
    """What `prepare` returned, or why it did not: MediaError or AbsentError."""
    try:
        return prepare(medium)
    except (MediaError, AbsentError) as error:
        return error
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        # A library's own complaint about one file must not end the run.
        return MediaError("decode_error", f"{type(error).__name__}: {error}")


def _encode(encoder: Encoder, batch: list[np.ndarray]) -> np.ndarray:
    """The encoded batch; halved and tried again where the device runs out of memory."""
    import torch

    try:
        return np.asarray(encoder.encode(batch))
    except torch.cuda.OutOfMemoryError:
        if len(batch) == 1:
            raise
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return np.concatenate([_encode(encoder, batch[:half]), _encode(encoder, batch[half:])])


def failure(item: str, modality: str, medium: Medium, error: MediaError) -> dict[str, Any]:
    """The line of failures.jsonl: where, why, and which bytes it was (size and digest of the first MiB)."""
    record: dict[str, Any] = {"id": item, "modality": modality, "code": error.code, "error": error.detail}
    if isinstance(medium, File):
        record["path"] = medium.path.name
        if medium.path.is_file() and error.code != "outside_media":
            with open(medium.path, "rb") as file:
                record |= {
                    "size": medium.path.stat().st_size,
                    "sha256_first_mib": hashlib.sha256(file.read(1 << 20)).hexdigest(),
                }
    return record
