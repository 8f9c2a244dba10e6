"""Texts -> features by the very encoder that a store was made with: words to search for, names of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders import encoders
from feature_extractors.protocols import MediaError, Text


def encode_texts(
    made: Mapping[str, str], modality: str, texts: Sequence[str], weights: Path | None = None
) -> Float32[np.ndarray, "n d_m"]:
    """Features of `texts` by the encoder that `made` names (name, fingerprint), which made `modality` of a store.

    Raises CalmrlError if its weights or settings are others now, and if it does not read text.
    """
    if made["name"] not in encoders or made["fingerprint"].startswith("declared:"):
        raise CalmrlError(
            f"'{modality}' was imported, so calmrl-lab has no encoder of texts for it (the store names its encoder '{made['name']}')",
            hint=f"encode the text with the model that made '{modality}' and search with --features QUERY.npy, or search with --item ID",
        )
    encoder = encoders.get(made["name"])(weights=weights)
    if encoder.fingerprint != made["fingerprint"]:
        raise CalmrlError(
            f"encoder '{made['name']}' is not the one '{modality}' was extracted with: its weights or settings differ",
            hint="name the weights of the extraction with --weights",
        )
    try:
        return np.concatenate([encoder.encode([encoder.prepare(Text(text))]) for text in texts])
    except MediaError:
        raise CalmrlError(
            f"encoder '{made['name']}' of '{modality}' does not read text",
            hint="name a modality of texts, or ask with features",
        ) from None
