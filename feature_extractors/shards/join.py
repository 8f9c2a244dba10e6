"""Joins finished parts to the arrays of a store, one part in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import ModalitySpec
from feature_extractors.encoder_setup import EncoderFacts
from feature_extractors.shards.shard import Part, read_rows


@dataclass
class Joined:
    """All parts but their features. `counts[m]` int64 [N], `reason` uint8 [N, k]; `damaged`: numbers of parts that must be made again."""

    paths: Sequence[Path]
    counts: dict[str, np.ndarray]
    reason: np.ndarray
    failures: list[dict[str, Any]]
    seconds: Counter[str]
    widths: dict[str, int]
    wide: set[str]
    damaged: list[int]

    def rows(self, modality: str) -> Iterator[np.ndarray]:
        """The features of a modality, part by part."""
        for path in self.paths:
            rows = read_rows(path, modality)
            # A block in which everything failed does not know how long a feature is.
            if len(rows):
                yield rows

    def spec(self, modality: str, fact: EncoderFacts) -> ModalitySpec:
        """What the store says of a modality. float16 where every value survives it, float32 where one does not."""
        dtype = fact.dtype or ("float32" if modality in self.wide else "float16")
        return ModalitySpec(modality, fact.name, fact.fingerprint, self.widths.get(modality) or max(fact.dimension, 1), dtype)


def join(paths: Sequence[Path], modalities: Sequence[str]) -> Joined:
    """Read all parts once, checking each. CalmrlError if the features of a modality have several lengths."""
    counts: dict[str, list[np.ndarray]] = {m: [] for m in modalities}
    joined = Joined(paths, {}, np.zeros((0, len(modalities)), np.uint8), [], Counter(), {}, set(), [])
    reasons = [joined.reason]
    for number, path in enumerate(paths):
        part = Part.read(path)
        if part is None:
            joined.damaged.append(number)
            continue
        reasons.append(part.reason)
        joined.failures += part.failures
        joined.seconds.update(part.seconds)
        for modality in modalities:
            counts[modality].append(part.counts[modality])
            rows = part.rows[modality]
            if not len(rows):
                continue
            if joined.widths.setdefault(modality, rows.shape[1]) != rows.shape[1]:
                raise CalmrlError(
                    f"the features of '{modality}' have {joined.widths[modality]} values for some items and {rows.shape[1]} for others",
                    hint="all vectors of a modality must have the same length",
                )
            if not survives_float16(rows):
                joined.wide.add(modality)
    joined.reason = np.concatenate(reasons)
    joined.counts = {m: np.concatenate([np.zeros(0, np.int64), *of]) for m, of in counts.items()}
    return joined


def survives_float16(rows: np.ndarray) -> bool:
    """True if rounding neither overflows a value nor turns a row that is not zero into zeros."""
    with np.errstate(over="ignore"):
        rounded = rows.astype(np.float16)
    return bool(np.isfinite(rounded).all() and (rounded.any(axis=1) == rows.any(axis=1)).all())


def tally(reason: np.ndarray, modalities: Sequence[str]) -> dict[str, dict[str, int]]:
    """modality -> reason in words -> items, of a [N, k] array of reasons; without the observed."""
    from calmrl_lab.store import Reason

    return {
        m: {r.words: int((reason[:, column] == r).sum()) for r in Reason if r != Reason.OBSERVED}
        for column, m in enumerate(modalities)
    }


def count_codes(failures: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many media failed of what, most frequent first."""
    return dict(Counter(str(record["code"]) for record in failures).most_common())
