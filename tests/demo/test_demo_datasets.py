"""The two data sets that need no download: what is in them, and what is missing by nature."""

from collections import Counter

import pytest

pytest.importorskip("emoji", reason="the demo extra is not installed")

from feature_extractors.datasets import datasets


@pytest.fixture(scope="module")
def openmoji():
    return datasets.get("openmoji")().manifest()


@pytest.mark.slow
def test_openmoji_has_the_emoji_it_says(openmoji):
    assert 1600 <= len(openmoji.items) <= 1700
    assert len({item.id for item in openmoji.items}) == len(openmoji.items)
    assert openmoji.modalities == ("vision", "audio", "caption", "subtitle", "keywords")
    assert "CC BY-SA 4.0" in openmoji.licence
    assert "OpenMoji" in openmoji.attribution


def test_only_keywords_are_missing_by_nature(openmoji):
    owned = Counter(modality for item in openmoji.items for modality in item.media)
    assert all(owned[m] == len(openmoji.items) for m in openmoji.modalities[:4])
    assert 0.35 < owned["keywords"] / len(openmoji.items) < 0.45


def test_no_skin_tones_and_no_country_flags(openmoji):
    points = {int(point, 16) for item in openmoji.items for point in item.id.split("-")}
    assert not points & set(range(0x1F3FB, 0x1F400))
    assert not points & set(range(0x1F1E6, 0x1F200))


def test_openmoji_splits_whole_groups(openmoji):
    of_group = {}
    for item in openmoji.items:
        assert of_group.setdefault(item.group, item.split) == item.split
    share = {split: count / len(openmoji.items) for split, count in Counter(item.split for item in openmoji.items).items()}
    assert share == pytest.approx({"train": 0.6, "validation": 0.15, "test": 0.25}, abs=0.01)
    assert max(Counter(item.group for item in openmoji.items).values()) < 0.1 * len(openmoji.items)


def test_the_categories_are_the_nine_of_unicode(openmoji):
    assert set(Counter(item.labels["category"] for item in openmoji.items)) == {
        "Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects",
        "Symbols", "Flags",
    }  # fmt: skip


def test_variants_of_one_drawing_share_a_group(openmoji):
    group = {item.labels["name"]: item.group for item in openmoji.items}
    assert group["farmer"] == group["woman farmer"] == group["man farmer"]
    assert group["keycap 1"] == group["keycap 2"]
    assert group["cactus"] != group["factory"]


@pytest.mark.slow
def test_a_manifest_is_the_same_twice(openmoji):
    assert datasets.get("openmoji")().manifest() == openmoji


def test_digits_are_complete_and_balanced():
    digits = datasets.get("digits")().manifest()
    assert len(digits.items) == 2000
    assert {m: len(digits.items[0].media[m][0].values) for m in digits.modalities} == {
        "fou": 76, "fac": 216, "kar": 64, "pix": 240, "zer": 47, "mor": 6,
    }  # fmt: skip
    for split, size in (("train", 120), ("validation", 30), ("test", 50)):
        assert set(Counter(i.labels["digit"] for i in digits.items if i.split == split).values()) == {size}
