"""Links in a media folder: which of them may be followed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from calmrl_lab.errors import CalmrlError
from feature_extractors.file_names import is_system_file

# Beyond this share of files that are links to other places, the links are how the folder is laid out.
_FEW = 0.05


class AllowedPlaces:
    """The media folder, and the folders that links in it may lead to.

    `root`: the folder of --media. `followed`: folders that the user named with --follow-links. A path belongs if it lies in one of them once all
    its links are followed.
    """

    def __init__(self, root: Path, followed: Iterable[str | Path] = ()) -> None:
        self.root = root
        self._places = [place.resolve() for place in (root, *map(Path, followed))]
        self._known: dict[Path, bool] = {}

    def holds(self, path: Path) -> bool:
        """Whether `path`, with its links followed, lies in an allowed folder."""
        resolved = path.resolve()
        return any(resolved.is_relative_to(place) for place in self._places)

    def check_folder(self, folder: Path) -> None:
        """CalmrlError if `folder` lies outside because it, or a folder above it, is a link."""
        if folder not in self._known:
            self._known[folder] = self.holds(folder)
        if not self._known[folder]:
            raise self._refused(folder)

    def check_files(self, files: Sequence[Path]) -> None:
        """CalmrlError if a folder of one of the files is a link to elsewhere, or if many of the files are such links."""
        for folder in dict.fromkeys(path.parent for path in files if path.is_relative_to(self.root)):
            self.check_folder(folder)
        links = [path for path in files if path.is_symlink() and not self.holds(path)]
        if links and len(links) > _FEW * len(files):
            raise self._refused(links[0])

    def walk(self, folder: Path) -> Iterator[tuple[Path, list[str]]]:
        """(folder, names of files) of a folder and all below it, sorted, through links that are allowed; CalmrlError at one that is not."""
        seen = set()
        for place, inner, names in os.walk(folder, followlinks=True):
            here = Path(place)
            if here.is_symlink():
                self.check_folder(here)
            real = here.resolve()
            # A link to a folder above would lead round in circles.
            if real in seen:
                inner[:] = []
                continue
            seen.add(real)
            inner[:] = sorted(name for name in inner if not is_system_file(name))
            yield here, sorted(name for name in names if not is_system_file(name))

    def _refused(self, path: Path) -> CalmrlError:
        link = next((place for place in (path, *path.parents) if place.is_symlink()), path)
        target = link.resolve()
        named = target if target.is_dir() else target.parent
        return CalmrlError(
            f"'{link}' is a link to '{target}', outside the media folder '{self.root}'",
            hint=f"allow it with --follow-links {named}, or put the media into the folder",
        )
