"""The features of one modality as a file gives them: rows, whose they are, which of them are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Shaped

Pool = Literal["mean", "rows"]


@dataclass(frozen=True)
class ReadOptions:
    """What a file cannot say by itself.

    key: the array, column or family of columns that holds the features. id_column: the array or column that names the rows;
    `id_column_if_there`: the same where the file has it.
    pool: what becomes of several rows per item (frames): their `mean`, or all `rows`.
    """

    key: str | None = None
    id_column: str | None = None
    id_column_if_there: str | None = None
    pool: Pool | None = None


@dataclass(frozen=True)
class Source:
    """What one file gives for one modality.

    rows: [R, d_m] numbers, in memory or mapped. ids: [R] str, or None if the file names none; an id that is repeated
    owns several rows. observed: [R] bool, or None if the file has no mask (then rows that are all NaN are missing). split: [R] str as the
    file spells them, or None. unused: arrays that could name the rows, of which none was chosen. `named`: the array or column that the ids come from.
    told: what was taken and what was left out.
    """

    path: Path
    rows: Any
    ids: Shaped[np.ndarray, " rows"] | None = None
    observed: Bool[np.ndarray, " rows"] | None = None
    split: Shaped[np.ndarray, " rows"] | None = None
    unused: Sequence[str] = ()
    named: str | None = None
    told: str = ""


class StackedRows:
    """Arrays [R_i, d] of several files as one [R, d], of which only the rows asked for are read.

    >>> StackedRows([np.zeros((2, 3)), np.ones((1, 3))])[np.array([2, 0])].tolist()
    [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in self._parts])
        self.dtype = np.result_type(*(part.dtype for part in self._parts))
        self.shape = (int(self._ends[-1]), *self._parts[0].shape[1:])
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The rows of a slice, or with the given numbers, in memory."""
        wanted = np.arange(len(self))[rows]
        part = np.searchsorted(self._ends, wanted, side="right")
        starts = self._ends - [len(p) for p in self._parts]
        out = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        for number in np.unique(part).tolist():
            here = part == number
            out[here] = self._parts[number][wanted[here] - starts[number]]
        return out
