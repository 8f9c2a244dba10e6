"""MSR-VTT, the 1k-A split: 9000 clips to train on, 1000 to test."""

from __future__ import annotations

from feature_extractors.datasets import datasets
from feature_extractors.datasets._annotation_file import Split
from feature_extractors.datasets._vast_annotations import AnnotatedDataset, presets


@datasets.register("msrvtt")
class MSRVTT(AnnotatedDataset):
    """MSR-VTT 1k-A: 9000 training and 1000 test clips with sound, captions and subtitles (bring your own media)"""

    name = "msrvtt"
    title = "MSR-VTT, split 1k-A"
    splits = (
        Split("train", ("descs_ret_train.json", "unique_descs_ret_train.json"), row_per_caption=True),
        Split("test", ("descs_ret_test.json",)),
    )
    annotation_folders = ("msrvtt",)
    licence = "clips: research use only, they remain their owners'; annotations as released with VAST and GRAM (MIT)"
    attribution = "MSR-VTT (Xu et al., CVPR 2016), split 1k-A (Yu et al., ECCV 2018), subtitles by VAST (arXiv 2305.18500)"
    presets = presets(
        {"vast": "vast/eva-g-16-crop", "gram": "vast/eva-g-crop-gram"},
        "vast/beats64",
        zero_shot="vast/eva-g-crop",
        subtitle="vast/bert-subtitle",
    )
