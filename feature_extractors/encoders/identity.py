"""Values that are features already, stored as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from feature_extractors.encoders import encoders
from feature_extractors.fingerprints import fingerprint
from feature_extractors.protocols import MediaError, Medium, Vector


@encoders.register("identity")
class Identity:
    """No encoder: vectors go into the store unchanged, and decide its dimension."""

    dimension = 0  # as long as the vectors are
    dtype = "float32"  # what the user measured is not ours to round

    def __init__(self, device: str = "cpu", weights: Path | None = None, **options: Any) -> None:
        self.fingerprint = fingerprint({}, {"architecture": "identity", "revision": 1})

    def prepare(self, medium: Medium) -> np.ndarray:
        """float32 [d_m]. MediaError for another kind of medium."""
        if not isinstance(medium, Vector) or medium.values.ndim != 1:
            raise MediaError("not_media", f"a vector is needed, got {type(medium).__name__.lower()}")
        return np.asarray(medium.values, dtype=np.float32)

    def encode(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [batch, d_m]."""
        return np.stack(batch)

    def heads(self) -> Mapping[str, np.ndarray]:
        return {}
