"""MATLAB files (.mat): versions 4 to 7 through SciPy, version 7.3, which is HDF5, through h5py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.formats._folders import no_folder
from calmrl_lab.store.convert.reading.content import Content, Field, Kind, kind_of
from calmrl_lab.store.convert.reading.reading_errors import check_memory
from calmrl_lab.store.convert.reading.row_names import is_describing


@formats.register("matlab")
class Matlab:
    """MATLAB (.mat), versions 4 to 7.3: a matrix [rows, d] with a cell array of ids, one vector per item, or structs of these"""

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
        fields: dict[str, Field] = {}
        for name, shape, kind in listed:
            if kind in ("opaque", "function", "object"):
                raise CalmrlError(
                    f"'{path}': '{name or kind}' is an object of MATLAB (a string array, a table, a class), which only MATLAB reads",
                    hint="save it as a cell array of characters (cellstr), as a matrix (table2array) or as a struct (table2struct)",
                )
            if kind in ("struct", "cell"):
                _add(path, fields, name, _loaded(path, name), 0)
            else:
                fields[name] = _variable(path, name, shape, kind)
        return Content(path, _frames_by_item(fields), ordered=False)


_DEEPEST = 4
_NUMBERS = {"double", "single", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}


def _variable(path: Path, name: str, shape: tuple[int, ...], kind: str) -> Field:
    def load() -> np.ndarray:
        return np.asarray(_loaded(path, name))

    if kind == "sparse":
        check_memory(path, 8 * math.prod(shape))
        return _numbers(name, shape, "numbers", lambda: _dense(path, name))
    if kind in _NUMBERS:
        return _numbers(name, shape, "numbers", load)
    if kind == "logical":
        return _numbers(name, shape, "flags", lambda: load().astype(bool))
    if kind == "char" and (texts := _texts(load())) is not None:
        return Field.of(name, texts)
    return Field(name, shape, "other", load)


def _loaded(path: Path, name: str) -> Any:
    from scipy.io import loadmat

    return loadmat(path, variable_names=[name], appendmat=False)[name]


def _dense(path: Path, name: str) -> np.ndarray:
    """A sparse matrix with its zeros."""
    return np.asarray(_loaded(path, name).toarray())


def _add(path: Path, fields: dict[str, Field], name: str, value: np.ndarray, depth: int) -> None:
    """Adds a variable, or a field of a struct, in memory: structs as groups of their fields, cells as arrays of their parts."""
    if depth > _DEEPEST:
        raise CalmrlError(
            f"'{path}' nests structs more than {_DEEPEST} deep", hint="save the features as a matrix of their own"
        )
    if value.dtype.names:
        for part in value.dtype.names:
            held = value[part]
            inner = held.item() if held.size == 1 else held
            _add(path, fields, f"{name}/{part}", np.asarray(inner), depth + 1)
    elif value.dtype == object:
        cells: list[Any] = value.ravel().tolist()
        if cells and all(_is_struct(cell) and cell.dtype.names == cells[0].dtype.names for cell in cells):
            for part in cells[0].dtype.names:
                fields[f"{name}/{part}"] = _of_cells(f"{name}/{part}", [cell[part].item() for cell in cells])
        else:
            fields[name] = _of_cells(name, cells)
    elif value.dtype.kind == "U":
        texts = _texts(value)
        fields[name] = Field.of(name, value if texts is None else texts)
    else:
        fields[name] = _numbers(name, value.shape, kind_of(value.dtype), lambda: value)


def _is_struct(cell: Any) -> bool:
    return isinstance(cell, np.ndarray) and bool(cell.dtype.names) and cell.size == 1


def _of_cells(name: str, cells: list[Any]) -> Field:
    """Cells, or a field of all structs of an array, as one array: texts [R], numbers [R], or vectors of one length [R, d]; others as they are."""
    whole = np.empty(len(cells), dtype=object)
    whole[:] = cells
    texts = _texts(whole)
    if texts is not None:
        return Field.of(name, texts)
    arrays = [np.asarray(cell) for cell in cells]
    if not arrays or any(kind_of(array.dtype) != "numbers" for array in arrays) or len({array.shape for array in arrays}) > 1:
        return Field(name, whole.shape, "other", lambda: whole)
    stacked = np.stack(arrays)
    # A vector of MATLAB is a row [1, d] or a column [d, 1].
    return Field.of(name, stacked.reshape(len(stacked), *[n for n in stacked.shape[1:] if n != 1]))


def _frames_by_item(fields: dict[str, Field]) -> dict[str, Field]:
    """Cells of frames [T, d] with another T in each as one array per item, where one array of texts beside them names the items."""
    if any(field.kind == "numbers" and len(field.shape) > 1 for field in fields.values()):
        return fields
    frames = [
        field for field in fields.values() if field.kind == "other" and len(field.shape) == 1 and _are_frames(field.load())
    ]
    names = [
        field
        for field in fields.values()
        if field.kind == "strings" and frames and field.shape == frames[0].shape and not is_describing(field.name)
    ]
    if len(frames) != 1 or len(names) != 1 or len(set(names[0].load().tolist())) < len(names[0].load()):
        return fields
    leaf = frames[0].name.rpartition("/")[2]
    listed = zip(names[0].load().tolist(), frames[0].load(), strict=True)
    return {f"{item}/{leaf}": Field.of(f"{item}/{leaf}", cell) for item, cell in listed}


def _are_frames(cells: np.ndarray) -> bool:
    arrays = [cell for cell in cells if isinstance(cell, np.ndarray) and kind_of(cell.dtype) == "numbers" and cell.ndim == 2]
    return len(arrays) == len(cells) > 0 and len({array.shape[1] for array in arrays}) == 1


def _numbers(name: str, shape: tuple[int, ...], kind: Kind, load: Any) -> Field:
    """MATLAB knows neither numbers nor vectors: [1, 1] is a number here, a column [R, 1] a vector, a row [1, d] the array of one item."""
    if shape == (1, 1):
        return Field(name, (), kind, lambda: load()[0, 0])
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
    return Content(path, _frames_by_item(fields), ordered=False)


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
            cells = [_cell(path, file[reference]) for reference in np.asarray(file[name][()]).T.ravel()]
        return _of_cells(name, cells)
    if kind == "char" or (dataset.attrs.get("MATLAB_int_decode") == 2 and dataset.dtype == np.uint16):
        rows = ["".join(map(chr, row)).rstrip(" ") for row in np.atleast_2d(load())]
        return Field.of(name, np.array(rows, dtype=np.str_))
    if kind == "logical":
        return _numbers(name, shape, "flags", lambda: load().astype(bool))
    return _numbers(name, shape, kind_of(dataset.dtype), load)


def _cell(path: Path, node: Any) -> Any:
    """What a cell holds: its text, its numbers, or None for a cell of cells or structs."""
    import h5py

    if not isinstance(node, h5py.Dataset) or node.dtype == h5py.ref_dtype:
        return None
    if node.attrs.get("MATLAB_empty"):
        return ""
    kind = node.attrs.get("MATLAB_class")
    check_memory(path, node.nbytes)
    values = np.asarray(node[()]).T
    # Files of other tools say nothing of the class; numbers of 16 bits in a row are characters then.
    if kind == b"char" or (kind is None and values.dtype == np.uint16 and values.ndim == 2 and 1 in values.shape):
        return "".join(map(chr, values.ravel().tolist()))
    return values
