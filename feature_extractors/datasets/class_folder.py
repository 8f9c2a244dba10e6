"""A folder of media sorted by class: any classification set that can be laid out so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime import console
from feature_extractors.datasets import datasets
from feature_extractors.datasets._vast_annotations import presets, refuse_unknown
from feature_extractors.media.file_names import IMAGE_ENDINGS, SOUND_ENDINGS, VIDEO_ENDINGS, is_system_file
from feature_extractors.protocols import File, Item, Manifest, Medium, Text

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

        Vision, audio and caption are always there; choose fewer with --encoders where no file gives one of them. Files of other endings are
        left out and counted; what operating systems leave in folders is not.
        """
        left_out: Counter[str] = Counter()
        items = [item for split, root in self._parts() for item in self._items(split, root, left_out)]
        if left_out:
            listed = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in left_out.most_common())
            console.note(f"class-folder: {left_out.total()} files are left out as no known media: {listed}")
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
        folders = sorted(p for p in self.media.iterdir() if p.is_dir() and not _is_hidden(p.name))
        if folders and all(p.name.lower() in _SPLITS for p in folders):
            return [(_SPLITS[p.name.lower()], p) for p in folders]
        return [("test", self.media)]

    def _items(self, split: str, root: Path, left_out: Counter[str]) -> list[Item]:
        items = []
        for folder in sorted(p for p in root.iterdir() if p.is_dir() and not _is_hidden(p.name)):
            name = folder.name.replace("_", " ")
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                if any(is_system_file(part) for part in path.relative_to(folder).parts):
                    continue
                media = _media(path)
                if not media:
                    left_out[path.suffix.lower()] += 1
                else:
                    caption: dict[str, Sequence[Medium]] = {"caption": (Text(self.template.format(name)),)}
                    items.append(Item(path.relative_to(self.media).as_posix(), split, media | caption, labels={"class": name}))
        return items


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
