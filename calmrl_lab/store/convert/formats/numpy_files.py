"""NumPy's own files: .npy and .npz, mapped where they lie."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.formats._folders import no_folder
from calmrl_lab.store.convert.reading.content import Content, Field, content_of, kind_of
from calmrl_lab.store.convert.reading.mapped_arrays import npy_header, npz_mapped
from calmrl_lab.store.convert.reading.plain_pickle import load_plain
from calmrl_lab.store.convert.reading.reading_errors import check_memory


@formats.register("npy")
class Npy:
    """NumPy array (.npy): features [rows, d], or a dict that np.save wrote"""

    endings: ClassVar[tuple[str, ...]] = (".npy",)
    is_folder = staticmethod(no_folder)

    @staticmethod
    def read(path: Path) -> Content:
        with open(path, "rb") as file:
            shape, _, dtype = npy_header(file)
            if dtype.hasobject:
                return content_of(path, load_plain(path, file.read()))
        array = np.load(path, mmap_mode="r", allow_pickle=False) if math.prod(shape) else np.empty(shape, dtype)
        if dtype.names and array.ndim == 1:
            return Content(path, {name: Field.of(name, array[name]) for name in dtype.names}, table=True, nested=False)
        return Content(path, {"features": Field.of("features", array)}, nested=False)


@formats.register("npz")
class Npz:
    """NumPy archive (.npz): features, ids and mask beside each other, or one array per item"""

    endings: ClassVar[tuple[str, ...]] = (".npz",)
    is_folder = staticmethod(no_folder)

    @staticmethod
    def read(path: Path) -> Content:
        fields: dict[str, Field] = {}
        # It stays open as long as a field may be loaded: there may be one for each of many thousand items.
        archive = zipfile.ZipFile(path)
        for name in archive.namelist():
            if name.endswith(".npy"):
                fields[name[:-4]] = _member(path, archive, name)
        if not fields:
            raise CalmrlError(f"'{path}' holds no .npy arrays", hint="np.savez(path, features=..., ids=...) writes such a file")
        if {"indices", "indptr", "shape", "data"} <= set(fields):
            raise CalmrlError(
                f"'{path}' holds a sparse matrix of SciPy, and features are dense",
                hint="np.savez(path, features=scipy.sparse.load_npz(FILE).toarray(), ids=...)",
            )
        if list(fields) == ["arr_0"] and not fields["arr_0"].shape:
            return content_of(path, fields["arr_0"].load())
        return Content(path, fields, nested=False)


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> Field:
    with archive.open(name) as member:
        shape, by_columns, dtype = npy_header(member)
        begin = member.tell()
    if dtype.hasobject:
        with archive.open(name) as member:
            npy_header(member)
            loaded = load_plain(path, member.read())
        array = np.asarray(loaded)
        return Field.of(name[:-4], _texts(array))
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > archive.getinfo(name).file_size:
        raise CalmrlError(
            f"'{path}' is damaged: '{name}' claims {claimed} bytes of numbers and has {archive.getinfo(name).file_size}",
            hint="download the file again",
        )

    def load() -> np.ndarray:
        mapped = npz_mapped(path, archive, name) if len(shape) >= 2 else None
        if mapped is not None:
            return mapped
        check_memory(path, claimed)
        if not claimed:
            return np.empty(shape, dtype)
        values = np.frombuffer(archive.read(name), dtype, math.prod(shape), begin)
        return values.reshape(shape, order="F" if by_columns else "C")

    return Field(name[:-4], shape, kind_of(dtype), load)


def _texts(array: np.ndarray) -> np.ndarray:
    """An array of Python strings as one of str; numbers among objects as numbers; anything else stays what it is."""
    if array.dtype != object or array.ndim == 0:
        return array
    values = array.ravel().tolist()
    if all(isinstance(value, (str, bytes)) or value is None for value in values):
        texts = ["" if v is None else v.decode("utf-8") if isinstance(v, bytes) else v for v in values]
        return np.array(texts, dtype=np.str_).reshape(array.shape)
    if all(isinstance(value, (int, float)) for value in values):
        return np.array(values).reshape(array.shape)
    if values and all(isinstance(value, np.ndarray) for value in values) and len({value.shape for value in values}) == 1:
        return np.stack(values).reshape(*array.shape, *values[0].shape)
    return array
