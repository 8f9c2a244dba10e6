"""Clotho v2: sounds of 15 to 30 seconds with five captions each."""

from __future__ import annotations

from feature_extractors.datasets import datasets
from feature_extractors.datasets._annotation_file import Split
from feature_extractors.datasets._vast_annotations import AnnotatedDataset, presets, without


@datasets.register("clotho")
class Clotho(AnnotatedDataset):
    """Clotho v2: sounds of 15 to 30 seconds with five captions each (bring your own media)"""

    name = "clotho"
    title = "Clotho v2.1"
    # The training list has a row for every caption.
    splits = (Split("train", ("descs_cap_trainval.json",), row_per_caption=True), Split("test", ("descs_cap_test.json",)))
    modalities = ("audio", "caption")
    annotation_folders = ("clothov2", "clotho")
    licence = "captions: Tampere University licence (non-commercial); sounds: their Freesound licences"
    attribution = "Clotho (Drossos et al., ICASSP 2020), lists as released with VAST and GRAM"
    presets = without(presets("vast/eva-g", "vast/beats64-3", zero_shot="vast/eva-g"), "vision")
