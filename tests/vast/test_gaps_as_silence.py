"""Silence and empty texts in place of missing media, as released evaluations have them; without being asked, a gap stays a gap."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore
from feature_extractors.datasets import datasets
from feature_extractors.encoders import encoders
from feature_extractors.extraction import extract
from feature_extractors.protocols import AbsentError, File, Item, Manifest, OrSilence, Text, Waveform
from feature_extractors.request import resolve_request
from feature_extractors.workers.prepare import attempt

TONE = Waveform((0.2 * np.sin(np.arange(16_000) / 9)).astype(np.float32)[None], 16_000)


class Sounds:
    """Two items: one with sound and a subtitle, one without either."""

    presets: ClassVar = {"vast": {"audio": "vast/beats64", "caption": "vast/bert-caption", "subtitle": "vast/bert-subtitle"}}

    def __init__(self, media=None, **options):
        assert not options

    def manifest(self):
        whole = {"caption": (Text("a dog"),), "subtitle": (Text("sing"),), "audio": (File(self.tone),)}
        items = [Item("whole", "train", whole), Item("bare", "test", {"caption": (Text("a cat"),), "subtitle": (Text(" "),)})]
        return Manifest("sounds", "CC0", "nobody", ("audio", "caption", "subtitle"), tuple(items))


@pytest.fixture
def sounds(tmp_path):
    pytest.importorskip("av", reason="decoding needs the extra 'media'")
    from extraction.zoo import clip

    Sounds.tone = clip(tmp_path / "tone.wav", None, sound="pcm_s16le", samples=TONE.samples)
    datasets._entries["sounds"] = Sounds
    yield "sounds"
    datasets._entries.pop("sounds")


def test_what_stands_in_is_what_the_released_code_encodes(weights):
    audio = encoders.get("vast/beats64-3")(weights=weights)
    assert_array_equal(audio.stand_in(), np.zeros((3, 1024, 64), np.float32))
    subtitle = encoders.get("vast/bert-subtitle")(weights=weights)
    assert [subtitle.tokenizer.id_to_token(i) for i in subtitle.stand_in()] == ["[CLS]", "[SEP]"]
    assert isinstance(attempt(subtitle, Text(" "), None), AbsentError)
    for medium in (OrSilence(None), OrSilence(Text("  "))):
        assert_array_equal(attempt(subtitle, medium, None), subtitle.stand_in())
    assert_array_equal(attempt(subtitle, OrSilence(Text("sing")), None), subtitle.prepare(Text("sing")))


@pytest.mark.slow
def test_a_store_with_and_without(sounds, weights, tmp_path):
    made = {}
    for name, options in (("mask", {}), ("silence", {"gaps_as_silence": True})):
        extract(sounds, tmp_path / f"{name}.zarr", weights=weights, options=options, workers=1, device="cpu")
        made[name] = FeatureStore.open(tmp_path / f"{name}.zarr")
    assert made["mask"].mask.tolist() == [[True, True, True], [False, True, False]]
    assert made["silence"].mask.all()
    assert made["silence"].dataset == "sounds (gaps as silence)"
    for spec, other in zip(made["mask"].specs, made["silence"].specs, strict=True):
        assert spec.fingerprint == other.fingerprint
    audio = encoders.get("vast/beats64")(weights=weights)
    expected = audio.encode([audio.stand_in()])[0]
    assert np.abs(made["silence"].features("audio")[1] - expected).max() < 1e-2


def test_encoders_that_do_not_stand_in(sounds, weights):
    with pytest.raises(CalmrlError, match="stands in for gaps"):
        resolve_request(sounds, "caption=vast/bert-caption", weights=weights, options={"gaps_as_silence": True})
