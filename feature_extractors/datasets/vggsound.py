"""VGGSound: ten-second clips, each with the one of 309 sounds that is seen and heard in it."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from calmrl_lab.errors import CalmrlError
from feature_extractors.datasets import datasets
from feature_extractors.datasets._annotation_file import Annotation, Split
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
            if part == split.name
        ]

    def aliases(self, name: str, modality: str) -> Iterable[str]:
        video, start = name.rsplit("_", 1)
        seconds = int(start)
        return (f"{video}_{seconds}", f"{video}_{seconds}_{seconds + 10}", f"{video}_{seconds * 1000}_{(seconds + 10) * 1000}")

    def group(self, name: str) -> str:
        return name.rsplit("_", 1)[0]


def read_rows(path: Path) -> list[tuple[str, str, str]]:
    """(clip id, class name, split) of every row of the released table: video, start second, class name, split, without a header.

    A clip's id is `<video>_<start, six digits>`. Raises CalmrlError for a row of another form, a repeated clip or more than 309
    classes.
    """
    found: dict[str, tuple[str, str, str]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise CalmrlError(f"the annotation file '{path}' cannot be read: {(error.strerror or 'input error').lower()}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise CalmrlError(f"the annotation file '{path}' is no valid CSV: {error}") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != 4 or not all(map(str.strip, row)) or not row[1].strip().isdecimal() or row[3] not in ("train", "test"):
            raise CalmrlError(
                f"line {number} of '{path}' is {','.join(row)[:80]!r}, expected: video, start second, class name, train or test",
                hint="restore the released vggsound.csv",
            )
        clip = f"{row[0]}_{int(row[1]):06d}"
        if clip in found:
            raise CalmrlError(f"the clip '{clip}' comes twice in '{path}' (line {number})", hint="remove one of the two lines")
        found[clip] = (clip, row[2].strip(), row[3])
    classes = {name for _, name, _ in found.values()}
    if not found or len(classes) > CLASSES:
        raise CalmrlError(f"'{path}' has {len(found)} clips of {len(classes)} classes, expected at most {CLASSES}")
    return list(found.values())
