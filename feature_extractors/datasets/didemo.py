"""DiDeMo: personal videos, the descriptions of their moments joined to one paragraph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from feature_extractors.annotations.annotation import Split
from feature_extractors.datasets import datasets
from feature_extractors.datasets._vast_annotations import AnnotatedDataset, presets


@datasets.register("didemo")
class DiDeMo(AnnotatedDataset):
    """DiDeMo paragraph retrieval: 8363 training and 1003 test videos (bring your own media)"""

    name = "didemo"
    title = "DiDeMo, paragraph to video"
    splits = (Split("train", ("descs_ret_train.json",)), Split("test", ("descs_ret_test.json",)))
    other_files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("train_data.json",),
        "validation": ("val_data.json",),
        "test": ("test_data.json",),
    }
    modalities = ("vision", "audio", "caption")
    annotation_folders = ("didemo",)
    licence = "annotations: BSD-2-Clause; videos: Creative Commons, they remain their owners'"
    attribution = "DiDeMo (Hendricks et al., ICCV 2017), lists as released with VAST and GRAM"
    presets = presets(
        {"vast": "vast/eva-g-32", "gram": "vast/eva-g-gram"}, "vast/beats64-2", "vast/bert-caption-70", zero_shot="vast/eva-g"
    )

    def aliases(self, name: str, modality: str) -> Iterable[str]:
        # GRAM writes the extracted sound as audio_<id>.mp3.
        return (f"audio_{name}",) if modality == "audio" else ()
