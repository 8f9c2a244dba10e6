"""MATLAB files (.mat): versions 4 to 7 through SciPy, version 7.3, which is HDF5, through h5py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.formats._folders import no_folder
from calmrl_lab.store.convert.reading.content import Content, Field, Kind, kind_of
from calmrl_lab.store.convert.reading.reading_errors import check_memory


@formats.register("matlab")
class Matlab:
    """MATLAB (.mat), versions 4 to 7.3: a matrix [rows, d] with a cell array of ids, or one vector per item"""

    endings: ClassVar[tuple[str, ...]] = (".mat",)
    is_folder = staticmethod(no_folder)

    @staticmethod
    def read(path: Path) -> Content:
        import h5py

        if h5py.is_hdf5(path):
            return _version_7_3(path)
        from scipy.io import whosmat

        listed = whosmat(path)
        check_memory(path, sum(math.prod(shape) for _, shape, _ in listed))
        return Content(path, {name: _variable(path, name, shape, kind) for name, shape, kind in listed}, ordered=False)


_NUMBERS = {"double", "single", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}


def _variable(path: Path, name: str, shape: tuple[int, ...], kind: str) -> Field:
    def load() -> np.ndarray:
        from scipy.io import loadmat

        return np.asarray(loadmat(path, variable_names=[name], appendmat=False)[name])

    if kind == "sparse":
        check_memory(path, 8 * math.prod(shape))
        return _numbers(name, shape, "numbers", lambda: _dense(path, name))
    if kind in _NUMBERS:
        return _numbers(name, shape, "numbers", load)
    if kind == "logical":
        return _numbers(name, shape, "flags", lambda: load().astype(bool))
    if kind in ("cell", "char"):
        texts = _texts(load())
        if texts is not None:
            return Field.of(name, texts)
    return Field(name, shape, "other", load)


def _dense(path: Path, name: str) -> np.ndarray:
    """A sparse matrix with its zeros."""
    from scipy.io import loadmat

    return np.asarray(loadmat(path, variable_names=[name], appendmat=False)[name].toarray())


def _numbers(name: str, shape: tuple[int, ...], kind: Kind, load: Any) -> Field:
    """MATLAB knows no vectors: a column [R, 1] is one here, a row [1, d] is the array of one item."""
    if len(shape) == 2 and shape[1] == 1 and shape[0] > 1:
        return Field(name, shape[:1], kind, lambda: load()[:, 0])
    return Field(name, tuple(shape), kind, load)


def _texts(array: np.ndarray) -> np.ndarray | None:
    """A cell array of texts, or a char matrix with one text per row (padded with spaces), as str [R]; None for other cells."""
    values = array.ravel().tolist()
    texts = []
    for value in values:
        inner = value.ravel().tolist() if isinstance(value, np.ndarray) else [value]
        if not all(isinstance(part, str) for part in inner) or len(inner) > 1:
            return None
        texts.append(inner[0].rstrip(" ") if inner else "")
    return np.array(texts, dtype=np.str_) if texts else None


def _version_7_3(path: Path) -> Content:
    import h5py

    fields: dict[str, Field] = {}

    def visit(name: str, node: Any) -> None:
        # #refs# and #subsystem# hold the cells themselves.
        if isinstance(node, h5py.Dataset) and not node.external and not node.is_virtual and not name.startswith("#"):
            fields[name] = _dataset(path, name, node)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return Content(path, fields, ordered=False)


def _dataset(path: Path, name: str, dataset: Any) -> Field:
    """MATLAB stores columns first, so the axes of every array come in the reverse order."""
    import h5py

    def load() -> np.ndarray:
        with h5py.File(path, "r") as file:
            check_memory(path, file[name].nbytes)
            return np.asarray(file[name][()]).T

    kind = str(dataset.attrs.get("MATLAB_class", b"").decode() if isinstance(dataset.attrs.get("MATLAB_class"), bytes) else "")
    shape = tuple(reversed(dataset.shape or ()))
    if dataset.dtype == h5py.ref_dtype:
        with h5py.File(path, "r") as file:
            cells = [_characters(file[reference]) for reference in np.asarray(file[name][()]).T.ravel()]
        if all(cell is not None for cell in cells):
            return Field.of(name, np.array(cells, dtype=np.str_))
        return Field(name, shape, "other", load)
    if kind == "char" or (dataset.attrs.get("MATLAB_int_decode") == 2 and dataset.dtype == np.uint16):
        rows = ["".join(map(chr, row)).rstrip(" ") for row in np.atleast_2d(load())]
        return Field.of(name, np.array(rows, dtype=np.str_))
    if kind == "logical":
        return _numbers(name, shape, "flags", lambda: load().astype(bool))
    return _numbers(name, shape, kind_of(dataset.dtype), load)


def _characters(dataset: Any) -> str | None:
    """The text of a cell: its characters as numbers, or nothing."""
    if dataset.attrs.get("MATLAB_empty"):
        return ""
    values = np.asarray(dataset[()])
    if values.dtype.kind not in "u" or values.ndim != 2 or 1 not in values.shape:
        return None
    return "".join(map(chr, values.T.ravel().tolist()))
