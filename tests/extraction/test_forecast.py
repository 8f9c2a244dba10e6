"""How long an extraction will take is told from its first pieces, and progress inside a block."""

from __future__ import annotations

import time

import numpy as np
import pytest

from calmrl_lab.runtime import console
from feature_extractors import forecast as forecasting
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
        "this will take about 5.8 days (a medium, 2 at a time: vision 100 s, and caption, not measured yet; vision with loading the encoder)"
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
    monkeypatch.setattr(forecasting, "WORTH_TELLING", 0.0)
    extract("fake", tmp_path / "s.zarr", workers=1, block_size=6)
    told = [line for line in said if "this will take" in line]
    assert told
    assert told[0].startswith("extracting fake: this will take ")
    assert "(a medium, one at a time: caption " in told[0]


def run_on_a_fake_clock(pieces, media, lanes=1):
    """What is told while pieces come one after the other, and the seconds that all of them took: [(second, sentence)], seconds."""
    forecast = Forecast(media, lanes)
    clock, told = 0.0, []
    for piece in pieces:
        clock += piece.seconds / lanes
        forecast.add(piece)
        if sentence := forecast.news(clock):
            told.append((clock, sentence))
    return told, clock


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_loading_and_warming_up_are_no_part_of_what_is_left(lanes):
    # 30 s of loading in every lane, a first block at a third of the speed, then 0.25 s a medium.
    names = [f"{lane}" for lane in range(lanes)]
    pieces = [Spent("vision", 8, 30 + 8 * 0.75, lane) for lane in names]
    pieces += [Spent("vision", 8, 8 * 0.75, lane) for _ in range(7) for lane in names]
    count = 4000 - len(pieces) * 8
    pieces += [Spent("vision", 64, 16.0, names[n % lanes], settled=True) for n in range(count // 64)]
    told, clock = run_on_a_fake_clock(pieces, {"vision": 4000}, lanes)
    first = (4000 - 8 * lanes) * 0.75 / lanes
    assert len(told) == 2
    assert told[0][0] < 60
    # The first word is from the first block, and nothing of it is loading; the second one, of settled blocks, is right.
    assert duration(first - 8 * 0.75 / lanes) in told[0][1] or duration(first) in told[0][1]
    assert duration((count - 64) * 0.25 / lanes) in told[1][1]
    assert told[1][0] < clock / 4 + 60


def test_a_first_piece_alone_is_said_to_be_an_upper_bound():
    told, _ = run_on_a_fake_clock([Spent("vision", 1, 45.0)], {"vision": 100})
    assert told == [
        (
            45.0,
            "this will take at most about 74 minutes (a medium, one at a time: vision 45 s; vision with loading the encoder)",
        )
    ]


def test_media_that_differ_are_told_as_a_range():
    pieces = [Spent("a", 1, 9.0, "0")] + [Spent("a", 10, 10.0 * (1 + n % 4), "0", settled=True) for n in range(8)]
    forecast = Forecast({"a": 1081}, 1)
    for piece in pieces:
        forecast.add(piece)
    assert forecast.range_left() == (1000.0, 3000.0)
    assert forecast.sentence() == "this will take 17 minutes to 50 minutes (a medium, one at a time: a 2.5 s)"


def test_what_does_not_change_is_not_told_again():
    steady = [Spent("a", 10, 10.0, "0", settled=True) for _ in range(60)]
    told, _ = run_on_a_fake_clock([Spent("a", 1, 20.0, "0"), *steady], {"a": 2000})
    assert len(told) == 1
    slower = [Spent("a", 10, 40.0, "0", settled=True) for _ in range(60)]
    told, _ = run_on_a_fake_clock([Spent("a", 1, 20.0, "0"), *steady, *slower], {"a": 2000})
    assert 2 <= len(told) <= 8
    assert told[-1][0] > 620
