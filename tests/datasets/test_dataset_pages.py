"""docs/datasets.md has a page for every dataset of the family, naming the files that are looked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from feature_extractors.datasets import datasets

PAGES = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
FAMILY = (
    "activitynet",
    "audiocaps",
    "clotho",
    "didemo",
    "msrvtt",
    "vast150k",
    "vast150k-captions",
    "vatex",
    "vggsound",
    "webvid",
    "youcook2",
)


@pytest.mark.parametrize("name", FAMILY)
def test_every_dataset_has_a_page_with_its_files_and_modalities(name):
    page = next(part for part in re.split(r"^## ", PAGES, flags=re.MULTILINE) if name in part.split("\n")[0].split(", "))
    dataset = datasets.get(name)
    for split in dataset.splits:
        assert all(file in page for file in split.files)
    assert f"{', '.join(dataset.modalities)}.".capitalize() in page
