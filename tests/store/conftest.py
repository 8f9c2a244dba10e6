"""Small stores for the tests: five items, three modalities, every kind of gap, several rows of one item."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calmrl_lab.store import ModalitySpec, write_store

IDS = ["a/b", "quote'\"", "line\nbreak", "smile\U0001f642", "plain"]
#                    vision audio caption
COUNTS = np.array([[1, 1, 2], [1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
#                    1 = absent by nature, 2 = failed, 3 = not extracted
REASON = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 3], [0, 2, 1], [2, 2, 3]], dtype=np.uint8)
DIMS = {"vision": 4, "audio": 3, "caption": 2}


def parts(seed: int = 0, dtype: str = "float16") -> dict[str, Any]:
    """The arguments of write_store for the five items above."""
    random = np.random.default_rng(seed)
    offsets = {m: np.concatenate([[0], np.cumsum(COUNTS[:, j])]) for j, m in enumerate(DIMS)}
    return {
        "dataset": "five",
        "modalities": [ModalitySpec(m, f"encoder-{m}", f"sha256:{m}", d, dtype) for m, d in DIMS.items()],
        "ids": list(IDS),
        "split": ["train", "train", "validation", "test", "test"],
        "group": ["g", "g", "h", "i", "j"],
        "labels": {"category": ["x", "y", "", "x", "z"], "sub group": ["1", "2", "3", "4", "é"]},
        "features": {m: random.standard_normal((int(offsets[m][-1]), d)).astype(dtype) for m, d in DIMS.items()},
        "offsets": offsets,
        "reason": REASON,
        "licence": "CC0",
        "attribution": "nobody — at all",
        "provenance": {"when": "now"},
        "heads": {"contra_head_v": random.standard_normal((2, 4)).astype(np.float32)},
        "failures": [{"id": "plain", "modality": "audio", "code": "decode_error", "error": "bad \udc80 byte"}],
        "attributes": {"preset": "demo"},
    }


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Hundreds of stores are written here, and none must survive a power failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield


@pytest.fixture
def five() -> dict[str, Any]:
    return parts()


@pytest.fixture
def store_path(tmp_path: Path, five: dict[str, Any]) -> Path:
    return write_store(tmp_path / "five.zarr", **five)
