"""VAST-150K: the sample of VAST-27M that GRAM and PMRL train on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from feature_extractors.annotations.annotation import Split
from feature_extractors.datasets import datasets
from feature_extractors.datasets._vast_annotations import AnnotatedDataset, presets, with_video


@datasets.register("vast150k")
class VAST150K(AnnotatedDataset):
    """VAST-150K: training clips of VAST-27M with omni-modality captions and subtitles (bring your own media)"""

    name = "vast150k"
    title = "VAST-150K"
    splits = (Split("train", ("annotations150k.json", "VASTannotations150k.json", "descs_vast150k.json")),)
    annotation_folders = ("vast", "vast150k")
    licence = "annotations as released by VAST (MIT); clips remain their owners'"
    attribution = "VAST-27M (Chen et al., NeurIPS 2023, arXiv 2305.18500), sampled by GRAM (arXiv 2412.11959)"
    presets = presets(
        {"vast": "vast/eva-g-crop", "gram": "vast/eva-g-crop-gram"},
        "vast/beats64",
        subtitle="vast/bert-subtitle",
    )
    preset_options = with_video("gram-compat", "pmrl-compat")


@datasets.register("vast150k-captions")
class VAST150KCaptions(VAST150K):
    """VAST-150K with its captions of the pictures and of the sound as two more modalities (bring your own media)"""

    name = "vast150k-captions"
    extra_texts: ClassVar[Mapping[str, str]] = {"vision_caption": "vision_cap", "audio_caption": "audio_cap"}
    presets = presets(
        {"vast": "vast/eva-g-crop", "gram": "vast/eva-g-crop-gram"},
        "vast/beats64",
        subtitle="vast/bert-subtitle",
        vision_caption="vast/bert-caption",
        audio_caption="vast/bert-caption",
    )
