"""Media without a length in a header: what breaks off is named, and bytes behind the end are no damage."""

from io import BytesIO

import numpy as np
import pytest

pytest.importorskip("av", reason="the media extra is not installed")
pytest.importorskip("PIL", reason="the media extra is not installed")

from extraction.zoo import clip, numbers_of, wave
from PIL import Image

from feature_extractors.media.chunks import ivf_end, y4m_end
from feature_extractors.media.decode import video_frames, waveform
from feature_extractors.protocols import MediaError

NOISE = np.random.default_rng(5)
BEHIND = {"zeros": bytes(3000), "tag": b"TAG" + bytes(125), "page": b"<!-- cached copy -->\n" * 12, "noise": NOISE.bytes(900)}
# Name -> codec of the sound, settings of the container.
SOUNDS = {
    "a.mp3": ("libmp3lame", {"write_xing": "0"}, None), "a.mp2": ("mp2", {}, None), "a.aac": ("aac", {}, None), "a.ac3": ("ac3", {}, None),
    "a.eac3": ("eac3", {}, None), "a.loas": ("aac", {}, "latm"), "a.voc": ("pcm_u8", {}, None),
}  # fmt: skip
VIDEOS = {
    "a.mpg": ("mpeg1video", "mpeg", {}), "a.vob": ("mpeg2video", "vob", {}), "a.m2ts": ("libx264", "mpegts", {"mpegts_m2ts_mode": "1"}),
    "a.mxf": ("mpeg2video", "mxf", {}), "a.y4m": ("wrapped_avframe", "yuv4mpegpipe", {}), "a.ivf": ("libvpx", "ivf", {}),
    "live.mkv": ("libx264", "matroska", {"live": "1"}), "a.rm": ("rv10", "rm", {}), "a.nut": ("libx264", "nut", {}),
    "a.obu": ("libsvtav1", "obu", {}),
}  # fmt: skip


def test_a_video_of_jpeg_pictures_without_a_container(tmp_path):
    path = clip(tmp_path / "a.mjpeg", "mjpeg", 12, format="mjpeg", size=(96, 64))
    whole = video_frames(path, range)
    assert numbers_of(whole) == list(range(12))
    assert np.array_equal(video_frames(path, lambda total: [total - 1]), whole[-1:])
    data = path.read_bytes()
    for what, more in BEHIND.items():
        path.write_bytes(data + more)
        assert np.array_equal(video_frames(path, range), whole), what
    starts = [place for place in range(len(data)) if data[place : place + 3] == b"\xff\xd8\xff"]
    for start, stop in ((starts[2], starts[3]), (starts[11], len(data))):
        path.write_bytes(data[: (start + stop) // 2])
        assert code(lambda path: video_frames(path, range), path) == "decode_error"


@pytest.mark.parametrize("packets", [3, 7, 11])
def test_a_real_video_that_lacks_packets_is_named(packets, tmp_path):
    path = clip(tmp_path / "a.rm", "rv10", 12, format="rm")
    data = path.read_bytes()
    place = data.index(b"DATA") + 18
    for _ in range(packets):
        place += int.from_bytes(data[place + 2 : place + 4], "big")
    path.write_bytes(data[:place])
    assert code(lambda path: video_frames(path, range), path) == "truncated"


@pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO")
def test_pictures_that_belong_to_the_first_are_no_frames(tmp_path):
    held = {}
    for name, size in (("first", (64, 48)), ("small", (32, 24)), ("same", (64, 48))):
        held[name] = BytesIO()
        Image.new("RGB", size, (9 * len(held), 80, 0)).save(held[name], "JPEG")
    first, small, same = (held[name].getvalue() for name in ("first", "small", "same"))
    listed = first[:2] + b"\xff\xe2\0\x08MPF\0\0\0" + first[2:]
    for data, frames in ((first + small, 1), (listed + same, 1), (first + same, 2), (first + same + small, None)):
        (tmp_path / "a.jpg").write_bytes(data)
        if frames is None:
            assert code(lambda path: video_frames(path, range), tmp_path / "a.jpg") == "decode_error"
        else:
            assert len(video_frames(tmp_path / "a.jpg", range)) == frames


def broken_places(data):
    """Lengths to which a file is cut, none of them at the border of two frames but by chance."""
    return [len(data) * tenth // 10 + 3 for tenth in (3, 6, 9)] + [len(data) - 3]


def code(read, path):
    with pytest.raises(MediaError) as caught:
        read(path)
    return caught.value.code


@pytest.mark.parametrize("name", SOUNDS)
def test_a_sound_that_breaks_off_is_named(name, tmp_path):
    codec, options, format = SOUNDS[name]
    path = clip(
        tmp_path / name, None, sound=codec, samples=wave(1, 44_100, 0.6), rate=44_100, container_options=options, format=format
    )
    whole, _ = waveform(path)
    data = path.read_bytes()
    for length in broken_places(data)[: 3 if name == "a.voc" else 4]:
        path.write_bytes(data[:length])
        assert code(waveform, path) == "truncated", length
    for what, more in BEHIND.items():
        path.write_bytes(data + more)
        assert np.array_equal(waveform(path)[0], whole), what


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_that_breaks_off_is_named(name, tmp_path):
    codec, format, options = VIDEOS[name]
    path = clip(tmp_path / name, codec, 12, container_options=options, format=format, size=(96, 64))
    whole = video_frames(path, range)
    assert numbers_of(whole) == list(range(12))
    data = path.read_bytes()
    for length in broken_places(data)[: 3 if name in ("a.mxf", "a.rm", "a.nut") else 4]:
        path.write_bytes(data[:length])
        assert code(lambda path: video_frames(path, range), path) in ("truncated", "decode_error"), length
    for what, more in BEHIND.items():
        path.write_bytes(data + more)
        assert np.array_equal(video_frames(path, range), whole), what


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
def test_bytes_behind_a_bare_mpeg_video_are_not_seen(codec, tmp_path):
    path = clip(tmp_path / "a.m2v", codec, 12, format=codec, size=(96, 64))
    whole = video_frames(path, range)
    data = path.read_bytes()
    for what, more in {**BEHIND, "a line": b"\n"}.items():
        path.write_bytes(data + more)
        assert np.array_equal(video_frames(path, range), whole), what
        assert np.array_equal(video_frames(path, lambda total: [total - 1]), whole[-1:]), what
    for length in broken_places(data):
        path.write_bytes(data[:length])
        assert code(lambda path: video_frames(path, range), path) == "decode_error", length


def test_uncompressed_sound_in_a_mov_file_is_whole(tmp_path):
    path = clip(tmp_path / "a.mov", "libx264", 12, sound="pcm_s16le", samples=wave(2, 48_000, 0.48), rate=48_000)
    heard, rate = waveform(path)
    assert (rate, heard.shape) == (48_000, (2, 23_040))
    assert numbers_of(video_frames(path, range)) == list(range(12))
    path.write_bytes(path.read_bytes()[:-2000])
    assert code(waveform, path) == "truncated"


def test_an_animation_that_lacks_frames_is_named(tmp_path):
    pictures = [Image.new("RGB", (40, 30), (10 * n, 0, 90)) for n in range(6)]
    path = tmp_path / "a.png"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40)
    assert len(video_frames(path, range)) == 6
    data = path.read_bytes()
    for length in (data.rindex(b"fcTL") - 4, data.rindex(b"fdAT") + 6, len(data) * 2 // 3):
        path.write_bytes(data[:length])
        assert code(lambda path: video_frames(path, range), path) == "truncated", length
    path.write_bytes(data[: data.rindex(b"IEND") - 4])
    assert len(video_frames(path, range)) == 6


@pytest.mark.parametrize(
    ("colours", "bytes_each"),
    [
        ("", 18),
        ("420jpeg", 18),
        ("420p10", 36),
        ("422", 24),
        ("444", 36),
        ("444alpha", 48),
        ("mono", 12),
        ("mono12", 24),
        ("411", 18),
    ],
)
def test_the_length_of_a_raw_frame(colours, bytes_each, tmp_path):
    # 4 x 3 pixels; two rows of colours for 3 of brightness.
    told = f" C{colours}" if colours else ""
    frame = b"FRAME\n" + bytes(
        bytes_each + (2 if colours.startswith("420") or not colours else 0) * (2 if "p10" in colours else 1)
    )
    head = f"YUV4MPEG2 W4 H3 F25:1{told}\n".encode()
    path = tmp_path / "a.y4m"
    for behind, end in ((b"", 0), (b"more", 0), (b"FRAME\n12", len(frame))):
        path.write_bytes(head + 2 * frame + behind)
        with open(path, "rb") as file:
            assert y4m_end(file, path.stat().st_size) == len(head) + 2 * len(frame) + end


def test_frames_of_ivf_are_told_from_what_follows(tmp_path):
    frames = b"".join((20).to_bytes(4, "little") + n.to_bytes(8, "little") + bytes(20) for n in range(4))
    head = b"DKIF\0\0\x20\0" + bytes(24)
    path = tmp_path / "a.ivf"
    for behind in (b"", bytes(40), b"TAG" + bytes(125), b"<html> and so on"):
        path.write_bytes(head + frames + behind)
        with open(path, "rb") as file:
            assert ivf_end(file, path.stat().st_size) == len(head + frames)
    path.write_bytes((head + frames)[:-5])
    with open(path, "rb") as file:
        assert ivf_end(file, path.stat().st_size) == len(head + frames)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bytes(5000), "it holds zeros only"),
        (b'{"error": "403"}', "it is text (JSON)"),
        (b"<!DOCTYPE html><html>403", "it is a web page and not the file: download it again"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x1f\x8b\x08\0more", "gunzip it first"),
    ],
)
def test_what_is_no_medium_is_told(data, said, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    with pytest.raises(MediaError) as caught:
        video_frames(path, range)
    assert (caught.value.code, said in caught.value.detail) == ("not_media", True), caught.value.detail


def test_a_format_that_is_not_read_is_told(tmp_path):
    path = clip(tmp_path / "a.sox", None, sound="pcm_s32le", samples=wave(1, 16_000, 0.5), format="sox")
    with pytest.raises(MediaError) as caught:
        waveform(path)
    assert (caught.value.code, "ffmpeg -i FILE" in caught.value.detail) == ("not_media", True)
