"""Folders of one file per item: ID.npy, or ID.pt, ID.npz, ID.safetensors with one array each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.formats._folders import files_in, folders_in
from calmrl_lab.store.convert.reading.content import Content, Field, kind_of
from calmrl_lab.store.convert.reading.mapped_arrays import npy_header
from calmrl_lab.store.convert.reading.reading_errors import reading_errors

# Tried in this order; a folder is read by the first of them that it has files of.
_ENDINGS = {".npy": "npy", ".pt": "torch", ".pth": "torch", ".npz": "npz", ".safetensors": "safetensors"}


@formats.register("npy-folder")
class ItemFolder:
    """Folder of one file per item (ID.npy, ID.pt, ID.npz, ID.safetensors)"""

    endings: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def is_folder(path: Path) -> bool:
        return next(_files_below(path), None) is not None

    @staticmethod
    def read(path: Path) -> Content:
        fields = {}
        for file in _files_below(path):
            name = file.relative_to(path).as_posix().removesuffix(file.suffix)
            with reading_errors(file):
                fields[name] = _array(file, name) if file.suffix.lower() == ".npy" else _only_array(file, name)
        return Content(path, fields, nested=False)


def _files_below(folder: Path) -> Iterator[Path]:
    """Files of one ending in the folder itself, or in folders below it whose names are part of the ids then."""
    for ending in _ENDINGS:
        if direct := list(files_in(folder, ending)):
            yield from direct
            return
    inner = folders_in(folder)
    for ending in _ENDINGS:
        if below := [file for place in inner for file in files_in(place, ending)]:
            yield from below
            return


def _array(file: Path, name: str) -> Field:
    with open(file, "rb") as opened:
        shape, _, dtype = npy_header(opened)
    if dtype.hasobject:
        return Field(name, shape, kind_of(dtype), lambda: np.load(file, allow_pickle=False))
    return Field(name, shape, kind_of(dtype), _loader(file))


def _loader(file: Path) -> Callable[[], np.ndarray]:
    """Loads an array without looking at its header as `np.load` does, for the headers of many thousand items are alike."""

    def load() -> np.ndarray:
        with reading_errors(file), open(file, "rb") as opened:
            shape, by_columns, dtype = npy_header(opened)
            values = np.frombuffer(opened.read(), dtype, math.prod(shape))
        return values.reshape(shape, order="F" if by_columns else "C")

    return load


def _only_array(file: Path, name: str) -> Field:
    """The one array of numbers in a file; CalmrlError if there are several."""
    arrays = [
        field
        for field in formats.get(_ENDINGS[file.suffix.lower()]).read(file).fields.values()
        if field.kind == "numbers" and field.shape
    ]
    if len(arrays) != 1:
        raise CalmrlError(
            f"'{file}' holds {len(arrays)} arrays ({', '.join(field.name for field in arrays[:6]) or 'none'}); a file of a folder is one item, with one array",
            hint="save the array that is meant as ID.npy, or name one of the files, not the folder",
        )
    return Field.of(name, np.asarray(arrays[0].load()), arrays[0].printed)
