"""One file or folder of features, in any form that people have, to rows, their ids and which of them are missing. Nothing in a file is executed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import nearest
from calmrl_lab.store.convert.formats import Format, formats
from calmrl_lab.store.convert.formats._folders import data_files, folders_in
from calmrl_lab.store.convert.formats.part_folders import read_parts
from calmrl_lab.store.convert.reading.choose import choose
from calmrl_lab.store.convert.reading.foreign_files import remedy
from calmrl_lab.store.convert.reading.reading_errors import reading_errors
from calmrl_lab.store.convert.reading.source import ReadOptions, Source
from calmrl_lab.store.convert.split_folders import split_folders, together

# Tested in this order: a folder of shards also holds .npy and .parquet files.
_FOLDERS_FIRST = ("datasets-folder", "shards", "webdataset", "part-folder", "npy-folder", "parquet")


def split_key(text: str) -> tuple[Path, str | None]:
    """'file.npz:key' -> (file.npz, key). A path that exists as it stands has no key."""
    if os.path.exists(text) or ":" not in text:
        return Path(text), None
    path, _, key = text.rpartition(":")
    return Path(path), key or None


def read_source(path: str | Path, modality: str, key: str | None = None, options: ReadOptions | None = None) -> Source:
    """Read the features of `modality` from a file or folder in one of the registered formats (docs/import.md lists them).

    Of a folder of folders, of which one is called like the modality, it is that one.

    key: the array (dataset, tensor, column, family of columns) to take; default: the one called like the modality, or 'features',
    'embeddings', or the only one that can be meant. A string array of the right length beside it names the rows, 'mask' says which are observed;
    a file of one array per item names them by these. Raises CalmrlError if the file is missing, damaged, of another kind, holds Python objects, or
    the choice is not clear.
    """
    path = Path(path)
    options = replace(options or ReadOptions(), key=key) if key is not None else options or ReadOptions()
    with reading_errors(path):
        if (path / modality).is_dir() and not data_files(path):
            return read_source(path / modality, modality, options=options)
        if splits := split_folders(path, _is_readable):
            parts = {name: _of_split(path, places, modality, options) for name, places in splits.items()}
            return together(path, parts)
        if (inner := _only_inner(path)) is not None:
            return read_source(inner, modality, options=options)
        source = choose(format_of(path).read(path), modality, options)
    return _checked(path, modality, source)


def _of_split(folder: Path, places: Sequence[Path], modality: str, options: ReadOptions) -> Source:
    """The features of one split: of its folder, its file, or its files that are parts of one."""
    if len(places) == 1:
        return read_source(places[0], modality, options=options)
    content = read_parts(folder, places)
    return _checked(folder, modality, choose(content, modality, options))


def _only_inner(folder: Path) -> Path | None:
    """The only folder in a folder that holds no features itself, as data sets are kept (DIR/data/train-00000-of-00001.parquet)."""
    places = folders_in(folder) if folder.is_dir() else []
    if not places or _is_readable(folder):
        return None
    inner = [place for place in places if split_folders(place, _is_readable) or _is_readable(place)]
    return inner[0] if len(inner) == 1 else None


def _is_readable(folder: Path) -> bool:
    try:
        return bool(format_of(folder))
    except CalmrlError:
        return False


def _checked(path: Path, modality: str, source: Source) -> Source:
    """The source, whose rows are [R, d] numbers and whose ids and mask fit; CalmrlError if not."""
    rows = source.rows
    if rows.ndim != 2 or rows.shape[1] == 0 or rows.dtype.kind not in "fiu" or rows.dtype.itemsize > 8:
        raise CalmrlError(
            f"'{path}': the features of '{modality}' are {rows.dtype} {list(rows.shape)}; expected numbers [rows, d]",
            hint="name another array as FILE:KEY; one array for each item is read from a file of several",
        )
    for what, array in (("ids", source.ids), ("mask", source.observed)):
        if array is not None and array.shape != (len(rows),):
            raise CalmrlError(
                f"'{path}': {what} has shape {list(array.shape)}; the features have {len(rows)} rows",
                hint="ids and mask have one entry for every row of features",
            )
    return source


def format_of(path: Path) -> type[Format]:
    """The format that reads `path`, by its ending, or, for folders, by what is in it."""
    if path.is_dir():
        ordered = [*_FOLDERS_FIRST, *(name for name in formats.names() if name not in _FOLDERS_FIRST)]
        for kind in (formats.get(name) for name in ordered):
            if kind.is_folder(path):
                return cast(type[Format], kind)
        raise CalmrlError(
            f"the folder '{path}' holds no features",
            hint=remedy(path)
            or "known: a file per item (ID.npy, ID.pt, ...), parts of one table (part-0.csv, ...), shards (img_emb_0.npy), .parquet or .tar files, what `datasets` saved, or train/ and test/ of these",
        )
    kinds = {ending: formats.get(name) for name in formats.names() for ending in formats.get(name).endings}
    # The longest ending counts: .tar.gz is no .gz.
    kind = kinds.get("".join(path.suffixes[-2:]).lower()) or kinds.get(path.suffix.lower())
    if kind is None:
        raise CalmrlError(
            f"'{path}': features are not read from '{path.suffix or path.name}' files{nearest(path.suffix.lower(), list(kinds))}",
            hint=remedy(path) or f"known: {', '.join(sorted(kinds))}, and folders of them",
        )
    if not path.is_file():
        raise CalmrlError(f"the file '{path}' does not exist", hint="a key inside a file is given as FILE:KEY")
    return cast(type[Format], kind)
