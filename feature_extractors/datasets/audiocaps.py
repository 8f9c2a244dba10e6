"""AudioCaps: ten-second clips with captions of their sound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from feature_extractors.annotations.annotation import Split
from feature_extractors.datasets import datasets
from feature_extractors.datasets._vast_annotations import AnnotatedDataset, presets, with_video


@datasets.register("audiocaps")
class AudioCaps(AnnotatedDataset):
    """AudioCaps: clips of ten seconds with captions of their sound, five each in the test set (bring your own media)"""

    name = "audiocaps"
    title = "AudioCaps"
    splits = (
        Split("train", ("descs_ret_train.json", "descs_cap_trainval.json", "descs_ret_trainval.json")),
        Split("test", ("descs_ret_test.json", "descs_cap_test.json")),
    )
    other_files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("train.csv",),
        "validation": ("val.csv",),
        "test": ("test.csv",),
    }
    modalities = ("vision", "audio", "caption")
    annotation_folders = ("audiocaps",)
    licence = "captions: MIT; clips remain their owners'"
    attribution = "AudioCaps (Kim et al., NAACL 2019), lists as released with VAST and GRAM"
    presets = presets({"vast": "vast/eva-g", "gram": "vast/eva-g-gram"}, "vast/beats64", zero_shot="vast/eva-g")
    preset_options = with_video("gram-compat")

    def aliases(self, name: str, modality: str) -> Iterable[str]:
        # Ids look like YTID_30.000_40.000. GRAM cuts them at the first dot; others write whole seconds, milliseconds, six digits, or only the
        # video (every video gives one clip of AudioCaps), with or without the Y that AudioSet puts before it.
        if name.count("_") < 2:
            return (name.replace(".000", ""),)
        video, start, end = name.rsplit("_", 2)
        try:
            first, last = float(start), float(end)
        except ValueError:
            return (name.replace(".000", ""),)
        seconds = (f"{int(first)}", f"{int(last)}")
        times = (
            f"_{start}_{end}", f"_{seconds[0]}_{seconds[1]}", f"_{start.split('.')[0]}", f"_{round(1000 * first)}_{round(1000 * last)}",
            f"_{round(1000 * first)}", f"_{int(first):06d}", f"_{int(first):06d}_{int(last):06d}", f"_{start}", f"_{first:.1f}_{last:.1f}", "",
        )  # fmt: skip
        return tuple(f"{mark}{video}{time}" for mark in ("", "Y") for time in times)

    def group(self, name: str) -> str:
        return name.rsplit("_", 2)[0]
