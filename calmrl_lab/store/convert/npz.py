"""NumPy's .npz files, written array by array and block by block: none of them has to be in memory whole."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np


class NpzWriter:
    """An .npz file that is being written, as a context manager; `numpy.load` reads it."""

    def __init__(self, path: Path) -> None:
        # np.savez wants every array in memory at once; an npz is a zip of .npy files.
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._archive.close()

    def array(self, name: str, values: np.ndarray) -> None:
        """Write one array."""
        with self._archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.ascontiguousarray(values).reshape(values.shape), allow_pickle=False)

    def blocks(self, name: str, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterable[np.ndarray]) -> None:
        """Write one array of `shape` from blocks of its rows, in order."""
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        with self._archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for block in blocks:
                member.write(np.ascontiguousarray(block, dtype=dtype).data)
