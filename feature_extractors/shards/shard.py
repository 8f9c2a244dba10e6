"""One file a finished block: features, counts, reasons and failures, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_lab.runtime.atomic_folders import writing_errors


@dataclass
class Part:
    """The result of a block. `rows[m]` [r, d_m] are the encoded media of modality m, `counts[m]` int64 [items] how many each item owns.

    `reason` uint8 [items, k]. `seconds`: where the time went; not part of the digest.
    """

    rows: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]
    reason: np.ndarray
    failures: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The part as a safetensors file whose metadata holds a sha256 over everything else."""
        from safetensors.numpy import save

        tensors = {f"rows.{m}": np.ascontiguousarray(rows) for m, rows in self.rows.items()}
        tensors |= {f"counts.{m}": np.asarray(counts, dtype=np.int64) for m, counts in self.counts.items()}
        tensors["reason"] = np.ascontiguousarray(self.reason, dtype=np.uint8)
        notes = {"failures": json.dumps(self.failures), "seconds": json.dumps(self.seconds)}
        return save(tensors, metadata={**notes, "sha256": _digest(tensors, notes)})

    @classmethod
    def read(cls, path: Path) -> Part | None:
        """The part at `path`; None if there is none or it is damaged (it is then made again)."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as file:
                notes = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        except (OSError, SafetensorError, ValueError):
            return None
        digest = notes.pop("sha256", "")
        if digest != _digest(tensors, notes):
            return None
        rows, counts = (
            {name.split(".", 1)[1]: array for name, array in tensors.items() if name.startswith(f"{kind}.")}
            for kind in ("rows", "counts")
        )
        return cls(rows, counts, tensors["reason"], json.loads(notes["failures"]), json.loads(notes["seconds"]))


def write_part(path: Path, data: bytes) -> None:
    """Write beside, flush to disk, rename: a part exists whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def read_rows(path: Path, modality: str) -> np.ndarray:
    """Only the features of one modality of a part that was found whole, [r, d_m]."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return file.get_tensor(f"rows.{modality}")


def _digest(tensors: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        total.update(f"{name} {array.dtype.str} {array.shape}".encode())
        total.update(array.tobytes())
    for name in sorted(notes):
        total.update(f"{name} {notes[name]}".encode())
    return total.hexdigest()
