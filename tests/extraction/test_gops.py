"""Groups of pictures: what must be decoded, and that leaving the rest out changes nothing."""

import numpy as np
import pytest

pytest.importorskip("av", reason="the media extra is not installed")

from extraction.zoo import clip, numbers_of

from feature_extractors.media import video as media
from feature_extractors.media.gops import Packet, Stretch, stretches
from feature_extractors.media.sampling import middle_of_segments


def packets(*groups):
    """Groups of time stamps in decoding order, each beginning with a key frame."""
    return [Packet(pts, place == 0) for group in groups for place, pts in enumerate(group)]


# Display order 0..11: closed groups of four with reordering, the second one open (4 is shown before its key frame 5).
CLOSED = packets([0, 3, 1, 2], [4, 7, 5, 6], [8, 11, 9, 10])
OPEN = packets([0, 3, 1, 2], [5, 4, 7, 6], [8, 11, 9, 10])


@pytest.mark.parametrize(
    ("given", "wanted", "expected"),
    [
        (CLOSED, [0], [(0, 1)]),
        (CLOSED, [2], [(0, 4)]),
        (CLOSED, [3], [(0, 2)]),
        (CLOSED, [4], [(4, 5)]),
        (CLOSED, [1, 9], [(0, 3), (8, 11)]),
        (CLOSED, [4, 6, 6], [(4, 8)]),
        (CLOSED, list(range(12)), [(0, 4), (4, 8), (8, 12)]),
        (OPEN, [5], [(4, 5)]),
        (OPEN, [4], [(0, 6)]),
        (OPEN, [1, 4], [(0, 6)]),
        (OPEN, [6, 10], [(4, 8), (8, 12)]),
    ],
)
def test_stretches(given, wanted, expected):
    assert stretches(given, wanted) == [Stretch(*pair) for pair in expected]


@pytest.mark.parametrize(
    "given",
    [
        [],
        [Packet(0, False), Packet(1, True)],
        [Packet(0, True), Packet(None, False)],
        [Packet(0, True), Packet(0, False)],
        [Packet(0, True)],
    ],
)
def test_packets_that_do_not_say_enough(given):
    assert stretches(given, [1]) is None


def test_hidden_packets_are_decoded_but_not_counted():
    given = [Packet(-2, True, shown=False), Packet(-1, False, shown=False), Packet(0, False), Packet(1, False), Packet(2, True)]
    assert stretches(given, [0]) == [Stretch(0, 3)]
    assert stretches(given, [2]) == [Stretch(4, 5)]


SOURCES = {
    "closed.mp4": ("libx264", {"g": "10", "bf": "3", "sc_threshold": "0"}),
    "open.mp4": ("libx264", {"g": "10", "bf": "3", "sc_threshold": "0", "x264-params": "open-gop=1"}),
    "closed.mkv": ("libx264", {"g": "10", "bf": "3", "sc_threshold": "0"}),
    "hevc.mp4": ("libx265", {"g": "10", "x265-params": "log-level=none:pools=none:frame-threads=1:keyint=10:min-keyint=10:open-gop=1"}),
    "vp9.webm": ("libvpx-vp9", {"g": "10", "cpu-used": "8", "lag-in-frames": "10", "auto-alt-ref": "1"}),
    "av1.mkv": ("libsvtav1", {"g": "10", "preset": "12", "svtav1-params": "lp=1"}),
    "mpeg4.avi": ("mpeg4", {"g": "10", "bf": "2", "sc_threshold": "0"}),
    "stream.ts": ("libx264", {"g": "10", "bf": "2"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_leaving_groups_out_changes_no_pixel(tmp_path, name, monkeypatch):
    codec, options = SOURCES[name]
    path = clip(tmp_path / name, codec, 120, options=options)
    monkeypatch.setattr(media, "_WORTH_SKIPPING", 2.0)
    generator = np.random.default_rng(0)
    choices = [
        middle_of_segments(120, 4),
        [0],
        [119],
        *(sorted(generator.choice(120, 3, replace=False).tolist()) for _ in range(6)),
    ]
    for wanted in choices:
        quick = media.clip_frames(path, lambda _, wanted=wanted: wanted)
        slow, _ = media._decode_all(path, wanted, 0)
        assert numbers_of(quick) == wanted
        assert np.array_equal(quick, np.stack([slow[index] for index in wanted]))
    assert name == "mpeg4.avi" or media._decode_groups(path, read_packets(path), [60], 0) is not None


def read_packets(path):
    with media.opened(path, 0) as container:
        return media._packets(container)
