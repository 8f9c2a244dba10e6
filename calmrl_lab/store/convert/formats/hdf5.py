"""HDF5 files (.h5, .hdf5), and MATLAB's version 7.3, which are such."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.formats._folders import no_folder
from calmrl_lab.store.convert.reading.content import Content, Field, kind_of
from calmrl_lab.store.convert.reading.mapped_arrays import hdf5_mapped
from calmrl_lab.store.convert.reading.reading_errors import check_memory


@formats.register("hdf5")
class Hdf5:
    """HDF5 (.h5, .hdf5): datasets beside each other, one dataset per item, or one group per item"""

    endings: ClassVar[tuple[str, ...]] = (".h5", ".hdf5", ".hdf", ".he5")
    is_folder = staticmethod(no_folder)

    @staticmethod
    def read(path: Path) -> Content:
        import h5py

        fields: dict[str, Field] = {}
        reader = _Reader(path)

        def visit(name: str, node: Any) -> None:
            # An import reads the file that it was given: visititems does not follow links to other files, and these hold their data there.
            if isinstance(node, h5py.Dataset) and not node.external and not node.is_virtual:
                if node.dtype.names and node.ndim == 1:
                    fields.update(_columns(reader, name, node))
                else:
                    fields[name] = _field(reader, name, node)
            home = name.rpartition("/")[0] if isinstance(node, h5py.Dataset) else name
            attributes.update(_texts_of(node, f"{home}/" if home else ""))

        attributes: dict[str, Field] = {}
        with h5py.File(path, "r") as file:
            attributes.update(_texts_of(file, ""))
            file.visititems(visit)
        # Ids are also kept as an attribute of the features or of the file.
        fields |= {name: field for name, field in attributes.items() if name not in fields}
        # Without track_order, groups list their members by letters.
        return Content(path, fields, ordered=False)


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


class _Reader:
    """An HDF5 file that is opened by the first array that is loaded, and open as long as one may be: there may be one for each of many thousand items."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def file(self) -> Any:
        import h5py

        return h5py.File(self.path, "r")


def _columns(reader: _Reader, name: str, table: Any) -> dict[str, Field]:
    """The columns of a table of HDF5 (a dataset of records), as fields beside it."""
    import h5py

    home = name.rpartition("/")[0]
    check_memory(reader.path, table.nbytes)
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


def _field(reader: _Reader, name: str, dataset: Any) -> Field:
    import h5py

    path = reader.path
    strings = h5py.check_string_dtype(dataset.dtype) is not None

    def load() -> np.ndarray:
        opened = reader.file[name]
        if strings:
            check_memory(path, opened.size * 64)
            return np.array(opened.asstr("utf-8")[()].tolist(), dtype=np.str_)
        mapped = hdf5_mapped(path, opened) if len(shape) >= 2 else None
        if mapped is None:
            check_memory(path, claimed)
            return np.asarray(opened[()])
        return mapped

    # Asked for once: there may be a dataset for each of many thousand items.
    shape = tuple(dataset.shape) if dataset.shape is not None else ()
    claimed = math.prod(shape) * dataset.dtype.itemsize
    return Field(name, shape, "strings" if strings else kind_of(dataset.dtype), load)
