"""VATEX: ten-second clips with ten English captions each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from feature_extractors.annotations.annotation import Split
from feature_extractors.datasets import datasets
from feature_extractors.datasets._vast_annotations import AnnotatedDataset, presets


@datasets.register("vatex")
class VATEX(AnnotatedDataset):
    """VATEX: clips with ten English captions each, and subtitles; 1500 test clips (bring your own media)"""

    name = "vatex"
    title = "VATEX (English)"
    splits = (Split("train", ("descs_ret_train.json",)), Split("test", ("descs_ret_test.json",)))
    other_files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("vatex_training_v1.0.json",),
        "validation": ("vatex_validation_v1.0.json",),
        "test": ("vatex_public_test_english_v1.1.json",),
    }
    annotation_folders = ("vatex",)
    licence = "captions: CC BY 4.0; clips remain their owners'"
    attribution = "VATEX (Wang et al., ICCV 2019), lists and subtitles as released with VAST and GRAM"
    presets = presets(
        {"vast": "vast/eva-g-16", "gram": "vast/eva-g-gram"},
        "vast/beats64",
        zero_shot="vast/eva-g-16",
        subtitle="vast/bert-subtitle",
    )

    def group(self, name: str) -> str:
        # YTID_000179_000189: clips of one video stay together.
        return name.rsplit("_", 2)[0]
