"""Vectors of items in a file: written a block at a time, read a block at a time, so that memory is that of a block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

# Numbers that are read at once: 64 MB of float64.
_NUMBERS = 1 << 23


class VectorFile:
    """Vectors [n, r] of one dtype, in the order in which they were appended; `len` is n."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count, self._dim = 0, 0
        self._dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self._count

    @property
    def dim(self) -> int:
        """r; 0 before the first block."""
        return self._dim

    def append(self, vectors: Float[np.ndarray, "b r"]) -> None:
        """Add a block; its dtype and dimension are those of all."""
        self._dim, self._dtype = vectors.shape[1], vectors.dtype
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(vectors).data)
        self._count += len(vectors)

    def blocks(self) -> Iterator[Float[np.ndarray, "b r"]]:
        """All vectors in order."""
        size = max(1, _NUMBERS // max(self._dim, 1))
        if not self._count:
            return
        with self._path.open("rb") as file:
            for start in range(0, self._count, size):
                count = min(size, self._count - start)
                yield np.fromfile(file, dtype=self._dtype, count=count * self._dim).reshape(count, self._dim)

    def at(self, positions: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m r"]:
        """The vectors at ascending positions."""
        parts, start = [np.empty((0, self._dim), dtype=self._dtype)], 0
        for block in self.blocks():
            inside = positions[(positions >= start) & (positions < start + len(block))]
            parts.append(block[inside - start])
            start += len(block)
        return np.concatenate(parts)
