"""Clotho v2: sounds of 15 to 30 seconds with five captions each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from feature_extractors.annotations.annotation import Split
from feature_extractors.datasets import datasets
from feature_extractors.datasets._vast_annotations import AUDIO_FOLDERS, AnnotatedDataset, presets, without


@datasets.register("clotho")
class Clotho(AnnotatedDataset):
    """Clotho v2: sounds of 15 to 30 seconds with five captions each (bring your own media)"""

    name = "clotho"
    title = "Clotho v2.1"
    splits = (Split("train", ("descs_cap_trainval.json",)), Split("test", ("descs_cap_test.json",)))
    other_files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("clotho_captions_development.csv",),
        "validation": ("clotho_captions_validation.csv",),
        "test": ("clotho_captions_evaluation.csv",),
    }
    # Three names stand in two splits, and one twice in the training list: other sounds, five captions each.
    captions_each = 5
    split_words: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("development", "train", "training", "dev"),
        "validation": ("validation", "val"),
        "test": ("evaluation", "test", "eval"),
    }
    audio_folders = (
        *AUDIO_FOLDERS,
        *(f"{start}{part}" for start in ("", "clotho_audio_") for part in ("development", "validation", "evaluation")),
    )
    modalities = ("audio", "caption")
    annotation_folders = ("clothov2", "clotho")
    licence = "captions: Tampere University licence (non-commercial); sounds: their Freesound licences"
    attribution = "Clotho (Drossos et al., ICASSP 2020), lists as released with VAST and GRAM"
    presets = without(presets("vast/eva-g", "vast/beats64-3", zero_shot="vast/eva-g"), "vision")
