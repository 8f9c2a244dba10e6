"""ActivityNet Captions: minutes-long videos, the sentences of each joined to one paragraph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from feature_extractors.annotations.annotation import Split
from feature_extractors.datasets import datasets
from feature_extractors.datasets._vast_annotations import AnnotatedDataset, presets


@datasets.register("activitynet")
class ActivityNet(AnnotatedDataset):
    """ActivityNet Captions paragraph retrieval: 10009 training and 4917 test (val1) videos (bring your own media)"""

    name = "activitynet"
    title = "ActivityNet Captions, paragraph to video"
    splits = (Split("train", ("descs_ret_train.json",)), Split("test", ("descs_ret_test.json",)))
    other_files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("train.json", "anet_ret_train.json"),
        "test": ("val_1.json", "anet_ret_val_1.json"),
    }
    modalities = ("vision", "audio", "caption")
    annotation_folders = ("activitynet",)
    licence = "annotations: research use; videos remain their owners'"
    attribution = "ActivityNet Captions (Krishna et al., ICCV 2017), lists as released with VAST and GRAM"
    presets = presets(
        {"vast": "vast/eva-g-32", "gram": "vast/eva-g-gram"}, "vast/beats64-2", "vast/bert-caption-70", zero_shot="vast/eva-g"
    )
