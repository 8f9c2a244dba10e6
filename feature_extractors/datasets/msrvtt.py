"""MSR-VTT, the 1k-A split: 9000 clips to train on, 1000 to test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from calmrl_lab.runtime import console
from feature_extractors.annotations.annotation import Annotation, Split
from feature_extractors.datasets import datasets
from feature_extractors.datasets._vast_annotations import AnnotatedDataset, presets

# All 10,000 clips with their captions, and the splits of the original challenge.
_WHOLE = ("MSRVTT_data.json", "videodatainfo_2017.json", "train_val_videodatainfo.json")


@datasets.register("msrvtt")
class MSRVTT(AnnotatedDataset):
    """MSR-VTT 1k-A: 9000 training and 1000 test clips with sound, captions and subtitles (bring your own media)"""

    name = "msrvtt"
    title = "MSR-VTT, split 1k-A"
    splits = (
        Split("train", ("descs_ret_train.json", "unique_descs_ret_train.json")),
        Split("test", ("descs_ret_test.json",)),
    )
    other_files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("msrvtt_ret_train9k.json", "msrvtt_train9k.json", *_WHOLE),
        "validation": _WHOLE,
        "test": ("MSRVTT_JSFUSION_test.csv", "msrvtt_ret_test1k.json", *_WHOLE),
    }
    annotation_folders = ("msrvtt",)
    licence = "clips: research use only, they remain their owners'; annotations as released with VAST and GRAM (MIT)"
    attribution = "MSR-VTT (Xu et al., CVPR 2016), split 1k-A (Yu et al., ECCV 2018), subtitles by VAST (arXiv 2305.18500)"
    presets = presets(
        {"vast": "vast/eva-g-16-crop", "gram": "vast/eva-g-crop-gram"},
        "vast/beats64",
        zero_shot="vast/eva-g-crop",
        subtitle="vast/bert-subtitle",
    )

    def arranged(self, annotated: list[Annotation], files: Mapping[str, Path]) -> list[Annotation]:
        """With the 1,000 test clips of 1k-A in a list of their own, everything else of the list of all clips is there to train on."""
        whole = next((path for path in files.values() if path.name.removesuffix(".gz") in _WHOLE), None)
        test = files.get("test")
        if whole is None or test is None:
            return annotated
        if test == whole:
            console.note(
                f"msrvtt: '{whole.name}' has the splits of the challenge (6513, 497, 2990 clips), not 1k-A; MSRVTT_JSFUSION_test.csv beside it gives 1k-A"
            )
            return annotated
        if files.get("train") != whole:
            return [item for item in annotated if item.split != "validation"]
        tested = [item for item in annotated if item.split == "test"]
        known = {item.id for item in tested}
        others = [
            item
            for split in ("train", "validation", "test")
            for item in self.read(whole, Split(split, ()))
            if item.id not in known
        ]
        for item in others:
            item.split = "train"
        console.note(
            f"msrvtt: 1k-A: {len(tested)} test clips of '{test.name}', the other {len(others)} of '{whole.name}' to train on"
        )
        return [*others, *tested]
