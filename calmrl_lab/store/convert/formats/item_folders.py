"""Folders of one file per item: ID.npy, or another file with one array, or with the same arrays in each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.formats._folders import data_files, folders_in, other_data_files, read_file, without_ending
from calmrl_lab.store.convert.formats.part_folders import are_parts
from calmrl_lab.store.convert.formats.text_tables import is_text_table, only_numbers
from calmrl_lab.store.convert.reading.content import Content, Field, kind_of
from calmrl_lab.store.convert.reading.mapped_arrays import npy_header
from calmrl_lab.store.convert.reading.reading_errors import reading_errors
from calmrl_lab.store.convert.records import ENDINGS, read_records, read_text


@formats.register("npy-folder")
class ItemFolder:
    """Folder of one file per item (ID.npy, or .pt, .npz, .safetensors, .h5, .mat, .pkl, .json, .csv, .txt)"""

    endings: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def is_folder(path: Path) -> bool:
        files = _files_below(path)
        if not files or files[0].suffix.lower() in (".parquet", ".feather", ".arrow") or are_parts(files):
            return False
        # A readme or settings are no item.
        return files[0].suffix.lower() not in (".txt", ".json") or only_numbers(files[0]) is not None

    @staticmethod
    def read(path: Path) -> Content:
        items: dict[str, dict[str, Field]] = {}
        files = _files_below(path)
        # The name of the only folder says nothing of an item.
        home = files[0].parent if len({file.parent for file in files}) == 1 else path
        for file in files:
            name = without_ending(file.relative_to(home).as_posix())
            with reading_errors(file):
                items[name] = _arrays(file)
        others = other_data_files(path, files)
        notes = _left_out(others)
        if all(len(arrays) == 1 for arrays in items.values()):
            fields = {name: replace(next(iter(arrays.values())), name=name) for name, arrays in items.items()}
            beside = _columns_beside(others, fields) if all(len(field.shape) > 1 for field in fields.values()) else {}
            return Content(path, {**fields, **beside}, nested=False, notes=notes)
        fields = {
            f"{name}/{part}": replace(f, name=f"{name}/{part}") for name, arrays in items.items() for part, f in arrays.items()
        }
        return Content(path, fields, notes=notes)


def _left_out(others: Sequence[Path]) -> list[str]:
    """A note on the files of features in a folder that are not read."""
    left = [file for file in others if file.suffix != ".txt"]
    return [f"left out: {len(left)} files of other endings, the first is {left[0].name}"] if left else []


def _columns_beside(others: Sequence[Path], arrays: Mapping[str, Field]) -> dict[str, Field]:
    """Columns of texts in the files beside arrays of rows (ids.txt, metadata.csv), of which each has a cell for every row."""
    lengths = {field.shape[0] for field in arrays.values()}
    found: dict[str, Field] = {}
    for file in others:
        if file.suffix.lower() not in (*ENDINGS, ".gz"):
            continue
        try:
            lines = read_text(file).removesuffix("\n").split("\n") if file.suffix.lower() == ".txt" else []
            columns = {without_ending(file.name): lines} if len(lines) in lengths else _columns(file)
        except CalmrlError:
            continue  # a readme, settings
        for name, cells in columns.items():
            if len(cells) in lengths and all(isinstance(cell, str) for cell in cells) and name not in arrays:
                found[name] = Field.of(name, np.array(cells, dtype=np.str_))
    return found


def _columns(file: Path) -> dict[str, list[Any]]:
    records = read_records(file)
    return {name: records.column(name) for name in records.names}


def _files_below(folder: Path) -> list[Path]:
    """Files of one ending in the folder itself, or in folders below it whose names are part of the ids then."""
    if direct := data_files(folder):
        return direct
    below = [files for place in folders_in(folder) if (files := data_files(place))]
    return [file for files in below if files[0].suffix == below[0][0].suffix for file in files]


def _arrays(file: Path) -> dict[str, Field]:
    """The arrays of numbers in the file of an item, by their names."""
    if file.suffix.lower() == ".npy":
        return {"": _array(file, "")}
    if is_text_table(file):
        values = only_numbers(file)
        if values is None:
            raise CalmrlError(
                f"'{file}' holds something else than numbers, and a file of a folder of texts is the vector, or the frames, of one item",
                hint="give it numbers only, or move it out of the folder",
            )
        return {"": Field.of("", values[:, 0] if values.shape[1] == 1 else values, printed=True)}
    arrays = [field for field in read_file(file).fields.values() if field.kind == "numbers" and field.shape]
    if not arrays:
        raise CalmrlError(
            f"'{file}' holds no array of numbers; a file of a folder is one item",
            hint="save the array that is meant as ID.npy, or move the file out of the folder",
        )
    # Loaded at once: there may be a file for each of many thousand items, and not as many can be open.
    return {field.name: Field.of(field.name, np.asarray(field.load()), field.printed) for field in arrays}


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
