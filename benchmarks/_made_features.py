"""Stores of made-up features of any size: low-rank, with gaps, written block by block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from calmrl_lab.store import ModalitySpec, offsets_of, write_store

_BLOCK = 16_384
_LATENT, _NOISE, _MISSING = 32, 0.5, 0.2


def write_features(path: Path, items: int, modalities: int = 4, dimension: int = 256, held_out: float = 0.05) -> Path:
    """A store at `path` of `items` items, float16, of which a share `held_out` is for validation and as much for test.

    The features of a modality are W z + noise of one latent vector z per item. An item lacks each modality but the first with
    probability 0.2. The same arguments give the same bytes, in memory of one block.
    """
    names = [f"m{number}" for number in range(modalities)]
    draw = np.random.default_rng(0)
    weights = [(draw.standard_normal((_LATENT, dimension)) / _LATENT**0.5).astype(np.float32) for _ in names]
    mask = draw.random((items, modalities)) >= _MISSING
    mask[:, 0] = True
    place = draw.random(items)
    split = np.where(place < held_out, "validation", np.where(place < 2 * held_out, "test", "train"))

    def rows(number: int) -> Iterator[np.ndarray]:
        for block, start in enumerate(range(0, items, _BLOCK)):
            shown = mask[start : start + _BLOCK, number]
            latent = np.random.default_rng((1, block)).standard_normal((len(shown), _LATENT), dtype=np.float32)[shown]
            noise = np.random.default_rng((2, number, block)).standard_normal((len(latent), dimension), dtype=np.float32)
            yield (latent @ weights[number] + _NOISE * noise).astype(np.float16)

    return write_store(
        path,
        dataset="made-up features",
        modalities=[ModalitySpec(name, "made-up", "made-up", dimension) for name in names],
        ids=[f"item{number}" for number in range(items)],
        split=split,
        features={name: rows(number) for number, name in enumerate(names)},
        offsets={name: offsets_of(mask[:, number]) for number, name in enumerate(names)},
    )
