"""YouCook2: steps of cooking videos, each a clip with one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from feature_extractors.annotations.annotation import Split
from feature_extractors.datasets import datasets
from feature_extractors.datasets._vast_annotations import AnnotatedDataset, presets


@datasets.register("youcook2")
class YouCook2(AnnotatedDataset):
    """YouCook2: 9283 training and 3216 test clips of cooking steps with subtitles (bring your own media)"""

    name = "youcook2"
    title = "YouCook2"
    splits = (Split("train", ("descs_cap_train.json",)), Split("test", ("descs_cap_test.json",)))
    # The captions of its test set are not public, so its validation set is what everybody tests on.
    other_files: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(
        ("train", "test"), ("youcookii_annotations_trainval.json", "youcookii_annotations.json")
    )
    split_meanings: ClassVar[Mapping[str, str]] = {"training": "train", "validation": "test", "testing": ""}
    annotation_folders = ("youcook", "youcook2")
    licence = "annotations: MIT; videos remain their owners'"
    attribution = "YouCook2 (Zhou et al., AAAI 2018), lists and subtitles as released with VAST and GRAM"
    presets = presets({"vast": "vast/eva-g", "gram": "vast/eva-g-gram"}, "vast/beats64", subtitle="vast/bert-subtitle")

    def group(self, name: str) -> str:
        # YTID_47_60: the steps of one video stay together.
        return name.rsplit("_", 2)[0]
