"""HDF5 files (.h5, .hdf5), and MATLAB's version 7.3, which are such."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.formats._folders import no_folder
from calmrl_lab.store.convert.reading.content import Content, Field, kind_of
from calmrl_lab.store.convert.reading.mapped_arrays import hdf5_mapped
from calmrl_lab.store.convert.reading.reading_errors import check_memory

# Arrays from this size on are mapped where they lie, and smaller ones are read.
_MAPPED = 1 << 16


@formats.register("hdf5")
class Hdf5:
    """HDF5 (.h5, .hdf5): datasets beside each other, one dataset per item, or one group per item"""

    endings: ClassVar[tuple[str, ...]] = (".h5", ".hdf5", ".hdf", ".he5")
    is_folder = staticmethod(no_folder)

    @staticmethod
    def read(path: Path) -> Content:
        import h5py
        from h5py import h5a, h5d, h5o

        fields: dict[str, Field] = {}
        attributes: dict[str, Field] = {}
        # It stays open as long as an array may be loaded: there may be one for each of many thousand items.
        file = h5py.File(path, "r")

        # h5py's objects cost more than to read an array of an item, so its low level does, which has no objects for what is only passed by.
        def visit(encoded: bytes) -> None:
            name = encoded.decode("utf-8", "surrogateescape")
            node = h5o.open(file.id, encoded)
            is_dataset = isinstance(node, h5d.DatasetID)
            if is_dataset and _holds_its_data(node):
                fields.update(_fields(path, name, node))
            if h5a.get_num_attrs(node):
                home = name.rpartition("/")[0] if is_dataset else name
                attributes.update(_texts_of(file[name], f"{home}/" if home else ""))

        attributes.update(_texts_of(file, ""))
        # It does not follow links to other files: an import reads the file that it was given.
        h5o.visit(file.id, visit)
        # Ids are also kept as an attribute of the features or of the file.
        fields |= {name: field for name, field in attributes.items() if name not in fields}
        # Without track_order, groups list their members by letters.
        return Content(path, fields, ordered=False)


def _holds_its_data(node: Any) -> bool:
    """Whether the data of a dataset are in this file, and not in others that it names."""
    from h5py import h5d

    made = node.get_create_plist()
    return bool(made.get_layout() != h5d.VIRTUAL and not made.get_external_count())


def _texts_of(node: Any, home: str) -> dict[str, Field]:
    """The attributes of a node that are lists of texts, as fields beside the datasets of `home`."""
    found = {}
    for name in node.attrs:
        value = np.asarray(node.attrs[name])
        if value.ndim == 1 and len(value) > 1 and value.dtype.kind in "OSU":
            texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in value.tolist()]
            if all(isinstance(text, str) for text in texts):
                found[home + name] = Field.of(home + name, np.array(texts, dtype=np.str_))
    return found


def _fields(path: Path, name: str, node: Any) -> dict[str, Field]:
    """A dataset as a field, or the columns of a table as fields beside it."""
    import h5py

    kind, shape = node.dtype, tuple(node.shape) if node.shape is not None else ()
    if kind.names and len(shape) == 1:
        return _columns(path, name, h5py.Dataset(node))
    if h5py.check_string_dtype(kind) is not None:
        return {name: Field(name, shape, "strings", lambda: _texts(path, h5py.Dataset(node)))}
    return {name: Field(name, shape, kind_of(kind), partial(_numbers, path, node, shape, kind))}


def _numbers(path: Path, node: Any, shape: tuple[int, ...], kind: np.dtype[Any]) -> np.ndarray:
    import h5py
    from h5py import h5s

    claimed = math.prod(shape) * kind.itemsize
    if len(shape) >= 2 and claimed >= _MAPPED and (mapped := hdf5_mapped(path, h5py.Dataset(node))) is not None:
        return mapped
    check_memory(path, claimed)
    if kind.kind not in "fiu" or not claimed:
        return np.asarray(h5py.Dataset(node)[()])
    values = np.empty(shape, kind)
    node.read(h5s.ALL, h5s.ALL, values)
    return values


def _texts(path: Path, dataset: Any) -> np.ndarray:
    check_memory(path, dataset.size * 64)
    return np.array(dataset.asstr("utf-8")[()].tolist(), dtype=np.str_)


def _columns(path: Path, name: str, table: Any) -> dict[str, Field]:
    """The columns of a table of HDF5 (a dataset of records), as fields beside it."""
    import h5py

    home = name.rpartition("/")[0]
    check_memory(path, table.nbytes)
    rows = table[()]
    found = {}
    for column in table.dtype.names:
        values = rows[column]
        if h5py.check_string_dtype(table.dtype[column]) is not None:
            texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in values.tolist()]
            values = np.array(texts, dtype=np.str_)
        place = f"{home}/{column}" if home else column
        found[place] = Field.of(place, values)
    return found
