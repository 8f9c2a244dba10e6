"""AudioCaps: ten-second clips with captions of their sound."""

from __future__ import annotations

from collections.abc import Iterable

from feature_extractors.datasets import datasets
from feature_extractors.datasets._annotation_file import Split
from feature_extractors.datasets._vast_annotations import AnnotatedDataset, presets, with_video


@datasets.register("audiocaps")
class AudioCaps(AnnotatedDataset):
    """AudioCaps: clips of ten seconds with captions of their sound, five each in the test set (bring your own media)"""

    name = "audiocaps"
    title = "AudioCaps"
    splits = (
        Split("train", ("descs_ret_train.json", "descs_cap_trainval.json", "descs_ret_trainval.json"), row_per_caption=True),
        Split("test", ("descs_ret_test.json", "descs_cap_test.json")),
    )
    modalities = ("vision", "audio", "caption")
    annotation_folders = ("audiocaps",)
    licence = "captions: MIT; clips remain their owners'"
    attribution = "AudioCaps (Kim et al., NAACL 2019), lists as released with VAST and GRAM"
    presets = presets({"vast": "vast/eva-g", "gram": "vast/eva-g-gram"}, "vast/beats64", zero_shot="vast/eva-g")
    preset_options = with_video("gram-compat")

    def aliases(self, name: str, modality: str) -> Iterable[str]:
        # Ids look like YTID_30.000_40.000. GRAM cuts them at the first dot, other tools write whole seconds.
        whole = name.replace(".000", "")
        return (whole, name.split(".")[0]) if name.endswith(".000") else (whole,)

    def group(self, name: str) -> str:
        return name.rsplit("_", 2)[0]
