"""What the formats of folders share: which files in one are data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.reading.choose import natural
from calmrl_lab.store.convert.reading.content import Content

# The endings of files of features in a folder: it is read by the first that it has files of, for others may describe these.
_ENDINGS = {
    (".npy",): "npy",
    (".pt",): "torch",
    (".pth",): "torch",
    (".npz",): "npz",
    (".safetensors",): "safetensors",
    (".h5",): "hdf5",
    (".hdf5",): "hdf5",
    (".mat",): "matlab",
    (".pkl",): "pickle",
    (".pickle",): "pickle",
    (".parquet",): "parquet",
    (".feather",): "parquet",
    (".arrow",): "parquet",
    (".csv", ".csv.gz"): "csv",
    (".tsv", ".tsv.gz"): "csv",
    (".jsonl", ".jsonl.gz"): "json",
    (".ndjson", ".ndjson.gz"): "json",
    (".json", ".json.gz"): "json",
    (".txt", ".txt.gz"): "csv",
}
_ALL_ENDINGS = tuple(ending for endings in _ENDINGS for ending in endings)
# What file managers leave in every folder.
_JUNK = re.compile(r"\._.*|\.DS_Store|Thumbs\.db|desktop\.ini|__MACOSX", re.IGNORECASE)


def is_junk(name: str) -> bool:
    """Whether a file of this name is left by a file manager (`._x`, `.DS_Store`, `Thumbs.db`, `desktop.ini`) and holds no data."""
    return bool(_JUNK.fullmatch(name))


def files_in(folder: Path, *endings: str) -> Iterator[Path]:
    """The files of a folder with one of the endings, item2 before item10, without what file managers leave there."""
    # A listing says what is a file, without a look at each of many thousand.
    with os.scandir(folder) as listed:
        names = [one.name for one in listed if one.name.lower().endswith(endings) and one.is_file() and not is_junk(one.name)]
    return (folder / name for name in sorted(names, key=natural))


def without_ending(name: str) -> str:
    """The name of a file without its ending, and without that of its compression."""
    return name.removesuffix(".gz").rpartition(".")[0]


def data_files(folder: Path) -> list[Path]:
    """The files of features in a folder, of one ending."""
    files = list(files_in(folder, *_ALL_ENDINGS))
    alike = ([file for file in files if file.name.lower().endswith(endings)] for endings in _ENDINGS)
    return next(filter(None, alike), [])


def other_data_files(folder: Path, taken: Sequence[Path]) -> list[Path]:
    """The files of features, or of what may be said about them, in a folder that are not among those that are read."""
    known = {file.name for file in taken if file.parent == folder}
    return [file for file in files_in(folder, *_ALL_ENDINGS) if file.name not in known]


def read_file(file: Path) -> Content:
    """The content of one file of a folder."""
    name = next(name for endings, name in _ENDINGS.items() if file.name.lower().endswith(endings))
    content: Content = formats.get(name).read(file)
    return content


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without links."""
    with os.scandir(folder) as listed:
        return [folder / name for name in sorted(one.name for one in listed if one.is_dir(follow_symlinks=False))]


def no_folder(path: Path) -> bool:
    """The test of a format that has no folders."""
    return False
