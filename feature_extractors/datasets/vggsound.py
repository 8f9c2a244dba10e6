"""VGGSound: ten-second clips, each with the one of 309 sounds that is seen and heard in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime import console
from calmrl_lab.store.convert.records import csv_rows
from feature_extractors.annotations.annotation import Annotation, Split
from feature_extractors.datasets import datasets
from feature_extractors.datasets._vast_annotations import AnnotatedDataset, presets

CLASSES = 309
_FILE = "vggsound.csv"


@datasets.register("vggsound")
class VGGSound(AnnotatedDataset):
    """VGGSound: clips of ten seconds with one of 309 class names, for classification (bring your own media)

    The caption of an item is the name of its class, which is also its label `class`, so that items of one class share their text.
    """

    name = "vggsound"
    title = "VGGSound, 309 classes"
    splits = (Split("train", (_FILE,)), Split("test", (_FILE,)))
    other_files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("train.csv", "vggsound_train.csv"),
        "test": ("test.csv", "vggsound_test.csv"),
    }
    modalities = ("vision", "audio", "caption")
    annotation_folders = ("vggsound",)
    licence = "annotations: CC BY 4.0; clips remain their owners'"
    attribution = "VGGSound (Chen et al., ICASSP 2020)"
    presets = presets({"vast": "vast/eva-g", "gram": "vast/eva-g-gram"}, "vast/beats64")

    def read(self, path: Path, split: Split) -> list[Annotation]:
        rows = read_rows(path)
        return [
            Annotation(clip, clip, split.name, [name], labels={"class": name})
            for clip, name, part in rows
            if part in (split.name, None)
        ]

    def aliases(self, name: str, modality: str) -> Iterable[str]:
        video, start = name.rsplit("_", 1)
        seconds = int(start)
        times = (
            f"_{seconds}",
            f"_{seconds}_{seconds + 10}",
            f"_{seconds * 1000}_{(seconds + 10) * 1000}",
            f"_{seconds:06d}_{seconds + 10:06d}",
        )
        return tuple(f"{video}{time}" for time in times)

    def group(self, name: str) -> str:
        return name.rsplit("_", 1)[0]


def read_rows(path: Path) -> list[tuple[str, str, str | None]]:
    """(clip id, class name, split) of every row of a table without a heading.

    The released table has four columns: video, start second, class name, split. Others have two, one file per split: the name of the clip's file
    and the class name; the split is None then. A clip's id is `<video>_<start, six digits>`. Raises CalmrlError for a row of another form, a
    clip that comes twice with different classes, or more than 309 classes.
    """
    found: dict[str, tuple[str, str, str | None]] = {}
    twice = 0
    for number, row in csv_rows(path):
        cells = [cell.strip() for cell in row]
        if (
            number == 1
            and not _clip_of(cells)
            and any(cell.lower() in ("label", "class", "split", "youtube_id", "video_id") for cell in cells)
        ):
            continue
        clip = _clip_of(cells)
        if clip is None:
            raise CalmrlError(
                f"line {number} of '{path}' is {','.join(row)[:80]!r}, expected: video, start second, class name, train or test (or: clip, class name)",
                hint="restore the released vggsound.csv",
            )
        name = cells[2] if len(cells) == 4 else cells[1]
        if clip in found and found[clip][1] != name:
            raise CalmrlError(f"the clip '{clip}' comes twice in '{path}' (line {number})", hint="remove one of the two lines")
        twice += clip in found
        found[clip] = (clip, name, cells[3] if len(cells) == 4 else None)
    classes = {name for _, name, _ in found.values()}
    if not found or len(classes) > CLASSES:
        raise CalmrlError(
            f"'{path}' has {len(found)} clips of {len(classes)} classes, expected at most {CLASSES}",
            hint="other classification sets are read with --dataset class-folder or --dataset folder",
        )
    if twice:
        console.note(f"{path.name}: {twice} rows repeat a clip and are left out")
    return list(found.values())


def _clip_of(cells: list[str]) -> str | None:
    """The id of the clip in a row; None if the row has another form."""
    if len(cells) == 4 and all(cells) and cells[1].isascii() and cells[1].isdecimal() and cells[3] in ("train", "test"):
        return f"{cells[0]}_{int(cells[1]):06d}"
    if len(cells) == 2 and all(cells):
        match = re.fullmatch(r"(.+?)_(\d+)(?:_\d+)?(?:\.\w{2,4})?", cells[0], re.ASCII)
        return f"{match[1]}_{int(match[2]):06d}" if match else None
    return None
