"""Which media files a folder holds, listed once: looking up an id costs no file-system call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from feature_extractors.media.file_names import is_system_file


class MediaIndex:
    """Files below some sub-folders of `root`, by name.

    `kinds` maps a modality to its sub-folders and the endings tried, in order, in lower or upper case. Sub-folders are searched to any
    depth; of two files of one name the first in sorted order counts. `frame_folders` hold one folder of images an item, an alternative to `vision`.
    """

    def __init__(
        self, root: Path, kinds: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]], frame_folders: tuple[str, ...] = ()
    ) -> None:
        self.root = root
        self.kinds = kinds
        self._folders = {m: [root / f for f in folders if (root / f).is_dir()] for m, (folders, _) in kinds.items()}
        self._files = {m: _files(folders) for m, folders in self._folders.items()}
        frames = [root / f for f in frame_folders if (root / f).is_dir()]
        self._frames = {
            entry.name: Path(entry.path)
            for folder in frames
            for entry in os.scandir(folder)
            if entry.is_dir() and not is_system_file(entry.name)
        }
        if frames and "vision" in self._folders:
            self._folders["vision"] += frames

    def folders(self, modality: str) -> list[Path]:
        """The sub-folders of a modality that exist."""
        return self._folders[modality]

    def find(self, modality: str, name: str) -> Path | None:
        """The file called `name`, or `name` with one of the endings. Names may hold dots and endings of their own."""
        files = self._files[modality]
        for ending in ("", *self.kinds[modality][1]):
            if (path := files.get(name + ending)) is not None:
                return path
        return self._frames.get(name) if modality == "vision" else None

    def expected(self, modality: str, name: str) -> Path:
        """Where the file of `name` belongs if it is not there."""
        folders, endings = self.kinds[modality]
        folder = self._folders[modality][0] if self._folders[modality] else self.root / folders[0]
        return folder / (name if name.endswith(endings) else name + endings[0])


def _files(folders: list[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        for place, inner, names in os.walk(folder):
            inner[:] = sorted(name for name in inner if not is_system_file(name))
            for name in sorted(name for name in names if not is_system_file(name)):
                found.setdefault(name, Path(place) / name)
    # Cameras write .MP4 and .MOV.
    for name in list(found):
        stem, ending = os.path.splitext(name)
        found.setdefault(stem + ending.lower(), found[name])
    return found
