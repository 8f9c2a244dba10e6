"""A folder of media sorted by class: any classification set that can be laid out so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from calmrl_lab.errors import CalmrlError
from feature_extractors.datasets import datasets
from feature_extractors.datasets._vast_annotations import presets, refuse_unknown
from feature_extractors.protocols import File, Item, Manifest, Medium, Text

_VIDEO = {".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg"}
_AUDIO = {".wav", ".mp3", ".flac", ".ogg", ".m4a", ".aac", ".opus"}
_IMAGE = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_LAYOUT = """DIR/<class name>/<any file>             all items are test items, or
    DIR/<train|val|test>/<class name>/<any file>
    videos give vision and audio, images vision, sound files audio; underscores in class names become spaces"""


@datasets.register("class-folder")
class ClassFolder:
    """Any classification set laid out as [split/]class/file; the class name is label and caption (bring your own media)

    `template` makes the caption from the class name, e.g. `a sound of {}`.
    """

    presets: ClassVar[Mapping[str, Mapping[str, str]]] = presets(
        {"vast": "vast/eva-g", "gram": "vast/eva-g-gram"}, "vast/beats64"
    )

    def __init__(self, media: Path | None = None, template: str = "{}", **unknown: Any) -> None:
        refuse_unknown("class-folder", unknown, ("template",))
        if media is None or not Path(media).is_dir():
            what = "needs a media folder" if media is None else f"finds no folder '{media}'"
            raise CalmrlError(f"dataset 'class-folder' {what}", hint=f"--media DIR, where DIR looks like this:\n    {_LAYOUT}")
        if "{}" not in template:
            raise CalmrlError(f"the template '{template}' has no {{}} for the class name", hint="e.g. template='a sound of {}'")
        self.media = Path(media)
        self.template = template

    def manifest(self) -> Manifest:
        """Items sorted by path; an item's id is its path below the folder.

        Vision, audio and caption are always there; choose fewer with --encoders where no file gives one of them.
        """
        items = [item for split, root in self._parts() for item in self._items(split, root)]
        if not items:
            raise CalmrlError(
                f"dataset 'class-folder': no media file in '{self.media}'",
                hint=f"the folder must look like this:\n    {_LAYOUT}",
            )
        present = tuple(m for m in ("vision", "audio", "caption") if any(m in item.media for item in items))
        return Manifest(
            f"class-folder {self.media.name}", "the licence of the media", f"media in {self.media.name}", present, tuple(items)
        )

    def _parts(self) -> list[tuple[str, Path]]:
        folders = sorted(p for p in self.media.iterdir() if p.is_dir() and not p.name.startswith("."))
        if folders and all(p.name.lower() in _SPLITS for p in folders):
            return [(_SPLITS[p.name.lower()], p) for p in folders]
        return [("test", self.media)]

    def _items(self, split: str, root: Path) -> list[Item]:
        items = []
        for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
            name = folder.name.replace("_", " ")
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                if media := _media(path):
                    caption: dict[str, Sequence[Medium]] = {"caption": (Text(self.template.format(name)),)}
                    items.append(Item(path.relative_to(self.media).as_posix(), split, media | caption, labels={"class": name}))
        return items


def _media(path: Path) -> dict[str, Sequence[Medium]]:
    """The modalities a file may hold, by its ending; what it really holds shows when it is decoded."""
    ending = path.suffix.lower()
    medium = (File(path),)
    if ending in _VIDEO:
        return {"vision": medium, "audio": medium}
    if ending in _IMAGE:
        return {"vision": medium}
    return {"audio": medium} if ending in _AUDIO else {}
