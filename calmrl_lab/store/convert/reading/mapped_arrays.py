"""Arrays inside .npz and HDF5 files as maps of the file: features larger than memory are imported where they lie."""

from __future__ import annotations

import struct
import zipfile
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

_BLOCK = 1 << 22
# A zip entry's own header: 30 bytes, of which the last four are the lengths of the name and of the extra field behind them.
_LOCAL_HEADER = struct.Struct("<26xHH")


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and dtype of the .npy file that begins where `file` stands; then it stands at the values."""
    version = np.lib.format.read_magic(file)
    length = file.read(2 if version == (1, 0) else 4)
    return _parsed(version, length + file.read(int.from_bytes(length, "little")))


@lru_cache(maxsize=256)
def _parsed(version: tuple[int, int], header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """What a header says; files of many thousand items have few different ones."""
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(BytesIO(header))


def npz_mapped(path: Path, archive: zipfile.ZipFile, member: str) -> np.ndarray | None:
    """The array `member` of an .npz file, read-only; None if it is compressed and so cannot be mapped.

    Its checksum is checked first, in one pass. Raises zipfile.BadZipFile if it does not fit, ValueError for Python objects.
    """
    entry = archive.getinfo(member)
    if entry.compress_type != zipfile.ZIP_STORED:
        return None
    with archive.open(entry) as stored:
        while stored.read(_BLOCK):
            pass
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        file.seek(sum(_LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))), 1)
        shape, fortran, dtype = npy_header(file)
        if dtype.hasobject:
            raise ValueError("Python objects are not loaded")
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def hdf5_mapped(path: Path, dataset: Any) -> np.ndarray | None:
    """The numbers of an HDF5 dataset, read-only; None if it is in chunks, compressed, empty or otherwise not simply there in the file."""
    import h5py

    offset = dataset.id.get_offset()
    if offset is None or dataset.chunks is not None or dataset.dtype.kind not in "fiu" or 0 in dataset.shape:
        return None
    # Not all types of HDF5 are stored as numpy says (a precision below the size, bits elsewhere).
    if dataset.id.get_type() != h5py.h5t.py_create(dataset.dtype):
        return None
    return np.memmap(path, dataset.dtype, "r", offset, dataset.shape)
