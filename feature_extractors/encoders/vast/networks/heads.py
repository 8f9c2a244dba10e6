"""VAST's projection heads: one per modality without bias, and the joint ones over concatenated features with bias."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

# A modality, the letter that names its head, in the order in which joint heads concatenate.
LETTERS = {"vision": "v", "audio": "a", "subtitle": "s", "caption": "t"}
JOINT = {"va": ("vision", "audio"), "vs": ("vision", "subtitle"), "vas": ("vision", "audio", "subtitle")}


def own_heads(heads: Mapping[str, np.ndarray], modality: str) -> dict[str, np.ndarray]:
    """What a modality's encoder hands to the store: its own head, `contra_head_<letter>` [512, d_m].

    The caption encoder also hands over the joint heads (weight and bias) and the temperature [1], which belong to no single modality.
    """
    letter = LETTERS[modality]
    kept = {f"contra_head_{letter}": heads[f"contra_head_{letter}.linear.weight"]}
    if modality == "caption":
        for name in JOINT:
            kept |= {f"contra_head_{name}.{tail}": heads[f"contra_head_{name}.{tail}"] for tail in ("weight", "bias")}
        kept["contra_temp"] = np.reshape(heads["contra_temp"], 1)
    return {name: np.asarray(values, dtype=np.float32) for name, values in kept.items()}


def project(features: Float[np.ndarray, "n d_m"], weight: Float[np.ndarray, "d d_m"]) -> Float[np.ndarray, "n d"]:
    """Unit-norm embeddings of one modality; a zero projection stays zero."""
    return _unit(features @ weight.T)


def _unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
