"""What a worker needs to encode any block: which encoders, on what device, with which weights and media."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from feature_extractors.protocols import Encoder


@dataclass(frozen=True)
class Equipment:
    """Small and picklable. `kinds` maps encoder names to classes, so that workers need no registry to find them.

    `choice`: modality -> encoder name. `media`: the folder that files must lie in (None: anywhere).
    """

    choice: Mapping[str, str]
    kinds: Mapping[str, type]
    device: str = "cpu"
    weights: Path | None = None
    media: Path | None = None

    def encoder(self, name: str) -> Encoder:
        return self.kinds[name](device=self.device, weights=self.weights)

    def encoders(self) -> dict[str, Encoder]:
        """An encoder a modality; modalities of one encoder name share it."""
        made = {name: self.encoder(name) for name in dict.fromkeys(self.choice.values())}
        return {modality: made[name] for modality, name in self.choice.items()}

    def on(self, device: str) -> Equipment:
        return replace(self, device=device)


@dataclass(frozen=True)
class EncoderFacts:
    """What a store says about an encoder. `dtype` None: float16 if all values survive it, float32 if not."""

    name: str
    fingerprint: str
    dimension: int
    dtype: str | None
    heads: Mapping[str, np.ndarray]


def facts(equipment: Equipment) -> dict[str, EncoderFacts]:
    """Modality -> facts on its encoder. Made on the CPU, and dropped again: the parent process holds no model."""
    known: dict[str, EncoderFacts] = {}
    for name in dict.fromkeys(equipment.choice.values()):
        encoder: Any = equipment.on("cpu").encoder(name)
        known[name] = EncoderFacts(
            name, encoder.fingerprint, encoder.dimension, getattr(encoder, "dtype", None), dict(encoder.heads())
        )
    return {modality: known[name] for modality, name in equipment.choice.items()}
