"""Which media files a folder holds, listed once: looking up an id costs no file-system call."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from feature_extractors.file_names import is_system_file
from feature_extractors.media.links import AllowedPlaces


class MediaIndex:
    """Files below some sub-folders of `root`, by name.

    `kinds` maps a modality to its sub-folders and the endings tried, in order, in lower or upper case. Sub-folders are searched to any
    depth, through links to allowed places; of two files of one name the first in sorted order counts, or the one in a folder that names the split.
    `frame_folders` hold one folder of images per item, an alternative to `vision`. Raises CalmrlError for a link to another place.
    """

    def __init__(
        self,
        root: Path,
        kinds: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]],
        frame_folders: tuple[str, ...] = (),
        followed: Iterable[str | Path] = (),
    ) -> None:
        self.root = root
        self.kinds = kinds
        places = AllowedPlaces(root, followed)
        self._folders = {m: [root / f for f in folders if (root / f).is_dir()] for m, (folders, _) in kinds.items()}
        self._files = {m: _files(folders, places) for m, folders in self._folders.items()}
        frames = [root / f for f in frame_folders if (root / f).is_dir()]
        for folder in frames:
            places.check_folder(folder)
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

    def find(self, modality: str, name: str, words: tuple[str, ...] = (), only: bool = False) -> Path | None:
        """The file called `name`, or `name` with one of the endings. Names may hold dots and endings of their own.

        `words`: names of the item's split; of several files the one in a folder called so comes first. `only`: no other file will do, because
        another item has the same name.
        """
        files = self._files[modality]
        for ending in ("", *self.kinds[modality][1]):
            found = files.get(name + ending, [])
            if words and (only or len(found) > 1):
                inside = [path for path in found if self._named(path, words)]
                found = inside or ([] if only else found)
            if found:
                return found[0]
        return self._frames.get(name) if modality == "vision" and not only else None

    def expected(self, modality: str, name: str) -> Path:
        """Where the file of `name` belongs if it is not there."""
        folders, endings = self.kinds[modality]
        folder = self._folders[modality][0] if self._folders[modality] else self.root / folders[0]
        return folder / (name if name.endswith(endings) else name + endings[0])

    def _named(self, path: Path, words: tuple[str, ...]) -> bool:
        """Whether a folder on the way to a file is called like one of the words, alone or with others (clotho_audio_development)."""
        return any(
            part in words for folder in path.relative_to(self.root).parts[:-1] for part in re.split(r"[^a-z]+", folder.lower())
        )


def _files(folders: list[Path], places: AllowedPlaces) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for folder in folders:
        places.check_folder(folder)
        for place, names in places.walk(folder):
            for name in names:
                found.setdefault(name, []).append(place / name)
    # Cameras write .MP4 and .MOV.
    for name in list(found):
        stem, ending = os.path.splitext(name)
        if ending != ending.lower():
            found.setdefault(stem + ending.lower(), found[name])
    return found
