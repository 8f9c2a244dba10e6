"""WebVid: stock videos with the sentence that their page gives them."""

from __future__ import annotations

from feature_extractors.annotations.annotation import Split
from feature_extractors.datasets import datasets
from feature_extractors.datasets._vast_annotations import AnnotatedDataset, presets


@datasets.register("webvid")
class WebVid(AnnotatedDataset):
    """WebVid-2M or -10M: stock videos with one sentence each, from the released CSV (bring your own media)"""

    name = "webvid"
    title = "WebVid"
    splits = (
        Split("train", ("results_10M_train.csv", "results_2M_train.csv")),
        Split("test", ("results_10M_val.csv", "results_2M_val.csv")),
    )
    modalities = ("vision", "audio", "caption")
    annotation_folders = ("webvid",)
    licence = "captions and videos remain their owners'"
    attribution = "WebVid (Bain et al., ICCV 2021)"
    presets = presets({"vast": "vast/eva-g", "gram": "vast/eva-g-gram"}, "vast/beats64")
