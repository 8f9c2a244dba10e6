"""HDF5 files (.h5, .hdf5), and MATLAB's version 7.3, which are such."""

from __future__ import annotations

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

        def visit(name: str, node: Any) -> None:
            # An import reads the file that it was given: visititems does not follow links to other files, and these hold their data there.
            if isinstance(node, h5py.Dataset) and not node.external and not node.is_virtual:
                fields[name] = _field(path, name, node)

        with h5py.File(path, "r") as file:
            file.visititems(visit)
        # Without track_order, groups list their members by letters.
        return Content(path, fields, ordered=False)


def _field(path: Path, name: str, dataset: Any) -> Field:
    import h5py

    strings = h5py.check_string_dtype(dataset.dtype) is not None

    def load() -> np.ndarray:
        with h5py.File(path, "r") as file:
            opened = file[name]
            if strings:
                check_memory(path, opened.size * 64)
                return np.array(opened.asstr("utf-8")[()].tolist(), dtype=np.str_)
            mapped = hdf5_mapped(path, opened) if opened.ndim >= 2 else None
            if mapped is None:
                check_memory(path, opened.nbytes)
                return np.asarray(opened[()])
            return mapped

    shape = tuple(dataset.shape) if dataset.shape is not None else ()
    return Field(name, shape, "strings" if strings else kind_of(dataset.dtype), load)
