"""A folder of media sorted by class: any classification set that can be laid out so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime import console
from calmrl_lab.store.convert.media_endings import IMAGE_ENDINGS, SOUND_ENDINGS, VIDEO_ENDINGS
from calmrl_lab.store.splits import split_named
from feature_extractors.datasets import datasets
from feature_extractors.datasets._vast_annotations import presets, refuse_unknown
from feature_extractors.file_names import is_system_file
from feature_extractors.media.links import AllowedPlaces
from feature_extractors.protocols import File, Item, Manifest, Medium, Text

_LAYOUT = """DIR/<class name>/<any file>             all items are test items, or
    DIR/<train|val|test>/<class name>/<any file>
    (a folder without any medium is neither class nor split)
    videos give vision and audio, images vision, sound files audio; underscores in class names become spaces"""


@datasets.register("class-folder")
class ClassFolder:
    """Any classification set laid out as [split/]class/file; the class name is label and caption (bring your own media)

    `template` makes the caption from the class name, e.g. `a sound of {}`.
    """

    presets: ClassVar[Mapping[str, Mapping[str, str]]] = presets(
        {"vast": "vast/eva-g", "gram": "vast/eva-g-gram"}, "vast/beats64"
    )

    def __init__(
        self,
        media: Path | None = None,
        template: str = "{}",
        follow_links: Sequence[str | Path] | str | Path = (),
        **unknown: Any,
    ) -> None:
        refuse_unknown("class-folder", unknown, ("template", "follow_links"))
        if media is None or not Path(media).is_dir():
            what = "needs a media folder" if media is None else f"finds no folder '{media}'"
            raise CalmrlError(f"dataset 'class-folder' {what}", hint=f"--media DIR, where DIR looks like this:\n    {_LAYOUT}")
        if "{}" not in template:
            raise CalmrlError(f"the template '{template}' has no {{}} for the class name", hint="e.g. template='a sound of {}'")
        self.media = Path(media)
        self._places = AllowedPlaces(self.media, [follow_links] if isinstance(follow_links, str | Path) else follow_links)
        try:
            template.format("")
        except (LookupError, ValueError, AttributeError) as error:
            raise CalmrlError(
                f"the template '{template}' has a field that cannot be filled: {error}",
                hint="only {} is, e.g. template='a sound of {}'",
            ) from None
        self.template = template

    def manifest(self) -> Manifest:
        """Items sorted by path; an item's id is its path below the folder.

        Vision, audio and caption are always there; choose fewer with --encoders where no file gives one of them. Files of other endings are
        left out and counted; what operating systems leave in folders is not.
        """
        left_out: Counter[str] = Counter()
        items = [item for split, root in self._parts() for item in self._items(split, root, left_out)]
        if left_out:
            listed = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in left_out.most_common())
            console.note(f"class-folder: {left_out.total()} files are left out as no known media: {listed}")
        lying = Counter(
            path.suffix.lower()
            for path in self.media.iterdir()
            if path.is_file() and _media(path) and not _is_hidden(path.name)
        )
        if lying:
            console.note(f"class-folder: {lying.total()} media files lie in no class folder of '{self.media}' and are left out")
        if not items:
            raise CalmrlError(
                f"dataset 'class-folder': no media file in '{self.media}'",
                hint=f"the folder must look like this:\n    {_LAYOUT}",
            )
        present = tuple(m for m in ("vision", "audio", "caption") if any(m in item.media for item in items))
        return Manifest(
            f"class-folder {self.media.absolute().name}",
            "the licence of the media",
            f"media in {self.media.absolute().name}",
            present,
            tuple(items),
        )

    def _parts(self) -> list[tuple[str, Path]]:
        """(split, folder of classes). Which folders are splits is decided by those that hold media; the refusals say what is unclear."""
        folders = [_Folder(path, self._places) for path in _folders(self.media, self._places)]
        with_media = [folder for folder in folders if folder.media]
        named = {folder.name: split for folder in with_media if (split := split_named(folder.name)) is not None}
        splits = [folder for folder in with_media if folder.name in named and not folder.direct]
        bare = [folder.name for folder in with_media if folder.name in named and folder.direct]
        others = [folder.name for folder in with_media if folder.name not in named]
        if splits and (others or bare):
            odd = others or bare
            raise CalmrlError(
                f"dataset 'class-folder': '{self.media}' holds {', '.join(f.name for f in splits)} with classes in them, and {', '.join(odd[:4])} with media beside them",
                hint="either all folders with media are splits that hold classes, or all are classes: move the others away",
            )
        if splits:
            return [(named[folder.name], folder.path) for folder in splits]
        if len(with_media) == 1 and not with_media[0].direct:
            raise CalmrlError(
                f"dataset 'class-folder': all media of '{self.media}' lie in folders of '{with_media[0].name}', which would be their only class",
                hint=f"--media {with_media[0].path} if its folders are the classes or splits",
            )
        inner = {name for folder in with_media for name in folder.inner}
        if (
            with_media
            and inner
            and all(split_named(name) for name in inner)
            and not any(folder.direct for folder in with_media)
        ):
            raise CalmrlError(
                f"dataset 'class-folder': the splits {', '.join(sorted(inner))} lie inside of the classes of '{self.media}'",
                hint=f"put them the other way round; the folder must look like this:\n    {_LAYOUT}",
            )
        return [("test", self.media)]

    def _items(self, split: str, root: Path, left_out: Counter[str]) -> list[Item]:
        items = []
        for folder in _folders(root, self._places):
            name = folder.name.replace("_", " ")
            for path in sorted(place / file for place, files in self._places.walk(folder) for file in files):
                media = _media(path)
                if not media:
                    left_out[path.suffix.lower()] += 1
                else:
                    caption: dict[str, Sequence[Medium]] = {"caption": (Text(self.template.format(name)),)}
                    items.append(Item(path.relative_to(self.media).as_posix(), split, media | caption, labels={"class": name}))
        return items


class _Folder:
    """A folder below the media folder: whether it holds media, right in it (`direct`) or deeper, and the names of the folders in it that do (`inner`)."""

    def __init__(self, path: Path, places: AllowedPlaces) -> None:
        self.path, self.name = path, path.name
        found = [place / file for place, files in places.walk(path) for file in files if _media(Path(file))]
        self.media = bool(found)
        self.direct = any(file.parent == path for file in found)
        self.inner = {file.relative_to(path).parts[0] for file in found if file.parent != path}


def _folders(root: Path, places: AllowedPlaces) -> list[Path]:
    found = sorted(path for path in root.iterdir() if path.is_dir() and not _is_hidden(path.name))
    for path in found:
        places.check_folder(path)
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or is_system_file(name)


def _media(path: Path) -> dict[str, Sequence[Medium]]:
    """The modalities a file may hold, by its ending; what it really holds shows when it is decoded."""
    ending = path.suffix.lower()
    medium = (File(path),)
    if ending in VIDEO_ENDINGS:
        return {"vision": medium, "audio": medium}
    if ending in IMAGE_ENDINGS:
        return {"vision": medium}
    return {"audio": medium} if ending in SOUND_ENDINGS else {}
