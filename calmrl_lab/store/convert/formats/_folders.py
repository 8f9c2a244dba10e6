"""What the formats of folders share: which files in one are data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from calmrl_lab.store.convert.reading.choose import natural

# What file managers leave in every folder.
_JUNK = re.compile(r"\._.*|\.DS_Store|Thumbs\.db|desktop\.ini|__MACOSX", re.IGNORECASE)


def is_junk(name: str) -> bool:
    """Whether a file of this name is left by a file manager (`._x`, `.DS_Store`, `Thumbs.db`, `desktop.ini`) and is nobody's data."""
    return bool(_JUNK.fullmatch(name))


def files_in(folder: Path, *endings: str) -> Iterator[Path]:
    """The files of a folder with one of the endings, item2 before item10, without what file managers leave there."""
    # A listing says what is a file, without a look at each of many thousand.
    with os.scandir(folder) as listed:
        names = [one.name for one in listed if one.name.lower().endswith(endings) and one.is_file() and not is_junk(one.name)]
    return (folder / name for name in sorted(names, key=natural))


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without links."""
    with os.scandir(folder) as listed:
        return [folder / name for name in sorted(one.name for one in listed if one.is_dir(follow_symlinks=False))]


def no_folder(path: Path) -> bool:
    """The test of a format that has no folders."""
    return False
