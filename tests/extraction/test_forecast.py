"""How long an extraction will take is told from its first pieces, and progress inside a block."""

from __future__ import annotations

import time

import numpy as np
import pytest

from calmrl_lab.runtime import console
from feature_extractors import extraction
from feature_extractors.encoders.vast.batching import Pieces, Runs
from feature_extractors.extraction import extract
from feature_extractors.forecast import Forecast, Spent, duration
from feature_extractors.protocols import Item, Text
from feature_extractors.workers.encode_block import Block, encode_block


@pytest.mark.parametrize("seed", range(6))
def test_a_forecast_is_what_is_left_times_what_a_medium_took(seed):
    random = np.random.default_rng(seed)
    lanes = 1 + seed % 3
    names = "a" if seed == 0 else "ab"
    spent = [(str(random.choice(list(names))), random.uniform(0.1, 3), random.uniform(0.1, 9)) for _ in range(3 + 2 * seed)]
    forecast = Forecast({"a": 100, "b": 50, "none": 0}, lanes)
    for event in spent:
        forecast.add(Spent(*event))
    expected = 0.0
    for modality, total in (("a", 100), ("b", 50)):
        events = [(media, seconds) for name, media, seconds in spent if name == modality]
        # The first one includes loading the encoder.
        counted = events[1:] or events
        if events:
            rate = sum(seconds for _, seconds in counted) / sum(media for media, _ in counted)
            expected += (total - sum(media for media, _ in events)) * rate / lanes
    assert forecast.seconds_left() == pytest.approx(expected)
    assert set(forecast.unmeasured()) == {"a", "b"} - {name for name, _, _ in spent}


def test_times_are_told_in_units_that_fit():
    assert [duration(seconds) for seconds in (3, 119, 120, 7199, 7200, 172_800, 1_040_000)] == [
        "3 s",
        "119 s",
        "2 minutes",
        "120 minutes",
        "2.0 hours",
        "2.0 days",
        "12.0 days",
    ]
    forecast = Forecast({"vision": 10_000, "caption": 10}, lanes=2)
    assert forecast.sentence() is None
    forecast.add(Spent("vision", 0.5, 50.0))
    assert forecast.sentence() == (
        "this will take about 5.8 days (a medium, 2 at a time: vision 100 s, and caption, not measured yet)"
    )


class Framed:
    """An encoder of 4 frames per text, two rows a piece."""

    dimension, fingerprint = 3, "framed"

    def __init__(self):
        self.pieces = Pieces(2, "cpu")

    def prepare(self, medium):
        time.sleep(0.01)
        return np.full((4, 3), len(medium.text), np.float32)

    def encode(self, batch):
        return self.pieces.run(lambda rows: rows, Runs(batch))[::4]

    def heads(self):
        return {}


def test_a_block_tells_of_every_piece():
    encoder = Framed()
    items = [Item(f"i{n}", "train", {"t": [Text("x" * n)]}) for n in range(1, 6)]
    told = []
    encode_block(
        Block(0, items), {"t": encoder}, lambda _, medium: (encoder.prepare(medium), 0.01), lambda *words: told.append(words)
    )
    spent = [words for words in told if words[0] == "spent"]
    # 20 rows in pieces of 2: half a medium each.
    assert [words[2] for words in spent] == [pytest.approx(0.5)] * 10
    assert all(words[3] > 0 for words in spent)
    assert [words for words in told if words[0] == "media"] == [("media", 5)]
    assert encoder.pieces.observer is None


def test_an_extraction_tells_what_it_will_take(fakes, monkeypatch, tmp_path):
    fakes(*["x"] * 24)
    said = []
    monkeypatch.setattr(console, "note", said.append)
    monkeypatch.setattr(extraction, "_WORTH_TELLING", 0.0)
    extract("fake", tmp_path / "s.zarr", workers=1, block_size=6)
    told = [line for line in said if "this will take about" in line]
    assert len(told) == 1
    assert told[0].startswith("extracting fake: this will take about 0 s (a medium, one at a time: caption ")
