"""Encoders as a worker sets them up: their names, device, options, weights and media."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known
from feature_extractors.protocols import Encoder


@dataclass(frozen=True)
class Equipment:
    """Encoders of a request with their device, options, weights and media; small and picklable.

    `kinds` maps encoder names to classes, so that workers need no registry to find them.

    `choice`: modality -> encoder name. `options`: modality -> options of its encoder. `media`: the folder that files must lie in
    (None: anywhere); `followed`: folders that links in it may lead to.
    """

    choice: Mapping[str, str]
    kinds: Mapping[str, type]
    device: str = "cpu"
    weights: Path | None = None
    media: Path | None = None
    followed: tuple[Path, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def encoder(self, modality: str) -> Encoder:
        return self.kinds[self.choice[modality]](device=self.device, weights=self.weights, **self.options.get(modality, {}))

    def encoders(self) -> dict[str, Encoder]:
        """An encoder per modality; modalities that want the same one share it."""
        made: dict[str, Encoder] = {}
        for modality in self.choice:
            twin = next((other for other in made if self._alike(modality, other)), None)
            made[modality] = made[twin] if twin is not None else self.encoder(modality)
        return made

    def on(self, device: str) -> Equipment:
        return replace(self, device=device)

    def check_options(self) -> None:
        """CalmrlError for an option that an encoder does not have, or for a modality that there is not."""
        for modality, options in self.options.items():
            form = "encoder options are of the form MODALITY.KEY=VALUE"
            if not isinstance(options, Mapping):
                raise CalmrlError(f"{form}, got '{modality}'", hint=f"modalities: {', '.join(self.choice)}")
            known(modality, list(self.choice), f"{form}; there is no modality")
            name = self.choice[modality]
            taken = [
                parameter.name
                for parameter in inspect.signature(self.kinds[name]).parameters.values()
                if parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in ("device", "weights")
            ]
            for option in options:
                known(option, taken, f"encoder '{name}' has no option")

    def _alike(self, one: str, two: str) -> bool:
        return self.choice[one] == self.choice[two] and self.options.get(one, {}) == self.options.get(two, {})


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
    found = {}
    for modality, encoder in equipment.on("cpu").encoders().items():
        dtype = getattr(encoder, "dtype", None)
        found[modality] = EncoderFacts(
            equipment.choice[modality], encoder.fingerprint, encoder.dimension, dtype, dict(encoder.heads())
        )
    return found
