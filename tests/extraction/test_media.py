"""The file zoo: for every kind of file the right frames, the right samples, or the right reason."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="the media extra is not installed")

from extraction.zoo import clip, cut_off, flipped, number_of, numbers_of, turned, wave

from feature_extractors.media.containers import is_cut_off
from feature_extractors.media.decode import frame_folder, image_of, sound_of, video_frames, waveform
from feature_extractors.media.sampling import middle_of_segments
from feature_extractors.protocols import AbsentError, File, Image, MediaError, Text, Waveform

REAL = Path(os.environ.get("CALMRL_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "media"


def eight(count):
    return middle_of_segments(count, 8)


def everything(count):
    return range(count)


VIDEOS = {
    "h264.mp4": {"codec": "libx264", "options": {"g": "12", "bf": "2"}},
    "long gop.mp4": {"codec": "libx264", "options": {"g": "250", "bf": "3"}},
    "open gop.mp4": {"codec": "libx264", "options": {"g": "10", "bf": "3", "x264-params": "open-gop=1"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:pools=none:frame-threads=1"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "vp9 with alternate frames.webm": {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
    "av1.mkv": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12"}},
    "mpeg4 with b-frames.mkv": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "mjpeg.avi": {"codec": "mjpeg"},
    "stream.ts": {"codec": "libx264"},
    "flash.flv": {"codec": "libx264"},
    "variable rate.mp4": {"codec": "libx264", "pts": np.cumsum([1 + 7 * i % 19 for i in range(40)]).tolist()},
    "moov first.mp4": {"codec": "libx264", "container_options": {"movflags": "faststart"}},
    "fragmented.mp4": {"codec": "libx264", "container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "12"}},
    "with sound.mp4": {"codec": "libx264", "sound": "aac"},
    "misnamed.jpg": {"codec": "libx264", "format": "mp4"},
}  # fmt: skip


@pytest.mark.parametrize("name", VIDEOS)
def test_the_right_frames(tmp_path, name):
    path = clip(tmp_path / name, **VIDEOS[name])
    assert numbers_of(video_frames(path, everything)) == list(range(40))
    assert numbers_of(video_frames(path, eight)) == eight(40)


def test_the_same_frames_one_by_one(tmp_path):
    path = clip(tmp_path / "c.mp4", options={"g": "12", "bf": "2"})
    whole = video_frames(path, everything)
    assert whole.shape == (40, 64, 96, 3)
    assert whole.dtype == np.uint8
    for index in (0, 11, 12, 38, 39):
        assert np.array_equal(video_frames(path, lambda _, index=index: [index])[0], whole[index])


def test_three_frames_for_eight_places(tmp_path):
    path = clip(tmp_path / "three.mp4", frames=3)
    assert numbers_of(video_frames(path, eight)) == [0, 1, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(("clockwise", "turns"), [(True, -1), (False, 1)])
def test_frames_are_turned_as_the_header_asks(tmp_path, clockwise, turns):
    path = clip(tmp_path / "upright.mp4")
    upright = video_frames(path, eight)
    on_side = video_frames(turned(tmp_path / "turned.mp4", path, clockwise), eight)
    assert on_side.shape == (8, 96, 64, 3)
    assert np.array_equal(on_side, np.rot90(upright, turns, axes=(1, 2)))


def code(path, what=lambda path: video_frames(path, eight)):
    with pytest.raises(MediaError) as caught:
        what(path)
    assert str(path.parent) not in caught.value.detail
    return caught.value.code


CUT = {
    "moov first.mp4": ({"frames": 120, "container_options": {"movflags": "faststart"}}, "truncated"),
    "moov last.mp4": ({}, "truncated"),
    "vp9.webm": ({"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}, "truncated"),
    "av1.mkv": ({"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}}, "truncated"),
    "mpeg4.avi": ({"codec": "mpeg4"}, "truncated"),
    "stream.ts": ({}, "truncated"),
    "flash.flv": ({}, "truncated"),
}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("share", [0.6, 0.95])
def test_a_download_that_broke_off_is_truncated(tmp_path, name, share):
    options, expected = CUT[name]
    assert code(cut_off(tmp_path / f"cut {name}", clip(tmp_path / name, **options), share)) == expected


def test_sound_that_broke_off_is_truncated(tmp_path):
    samples = wave(2, 16_000, 1.6)
    sounds = {"mp3": "libmp3lame", "wav": "pcm_s16le", "m4a": "aac", "mka": "libopus", "ogg": "libopus", "aiff": "pcm_s16be"}
    for name, sound in ((f"a.{ending}", sound) for ending, sound in sounds.items()):
        whole = clip(tmp_path / name, None, sound=sound, samples=samples)
        assert not is_cut_off(whole)
        assert code(cut_off(tmp_path / f"cut {name}", whole, 0.7), waveform) == "truncated", name
    whole = clip(tmp_path / "a.flac", None, sound="flac", samples=samples)
    assert code(cut_off(tmp_path / "cut a.flac", whole), waveform) == "decode_error"


def test_a_picture_that_broke_off_is_an_error(tmp_path):
    pytest.importorskip("PIL", reason="Pillow is not installed")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    for ending in ("png", "jpg", "webp", "bmp", "gif", "tiff"):
        whole = tmp_path / f"whole.{ending}"
        whole.write_bytes(image_bytes(tmp_path, ending, noise))
        assert video_frames(whole, everything).shape == (1, 200, 200, 3)
        for share in (0.5, 0.95):
            assert code(cut_off(tmp_path / f"cut.{ending}", whole, share)) in ("truncated", "decode_error"), ending


@pytest.mark.parametrize("place", [0.3, 0.45, 0.6, 0.75])
def test_flipped_bytes_give_an_error_or_the_right_frames(tmp_path, place):
    path = clip(tmp_path / "c.mp4", options={"g": "12"})
    assert code(flipped(tmp_path / "flipped.mp4", path, [place])) == "decode_error"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.mp4", b"", "empty_file"),
        ("page.mp4", b"<!DOCTYPE html><html><body>" + b"Too many requests. " * 200, "not_media"),
        ("noise.mp4", bytes(np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8)), "not_media"),
        ("text.txt", b"only words\n" * 100, "not_media"),
        ("zeros.mp4", bytes(10_000), "not_media"),
        ("playlist.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n/etc/passwd\n#EXT-X-ENDLIST\n", "not_media"),
        ("list.ffconcat", b"ffconcat version 1.0\nfile '/etc/passwd'\n", "not_media"),
        ("subtitles.srt", b"1\n00:00:01,000 --> 00:00:02,000\nHello\n\n" * 20, "not_media"),
        ("only a header.mp4", struct.pack(">I", 24) + b"ftypisom" + bytes(12), "decode_error"),
    ],
)  # fmt: skip
def test_what_is_no_media_is_not_taken_for_it(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    found = code(tmp_path / name)
    assert found == expected or (expected == "decode_error" and found in ("not_media", "truncated"))
    assert code(tmp_path / name, waveform) == found


def test_a_missing_file(tmp_path):
    assert code(tmp_path / "nothing.mp4") == "not_found"
    assert code(tmp_path / "nothing.mp4", waveform) == "not_found"


def test_a_file_cannot_make_the_decoder_open_another(tmp_path, monkeypatch):
    """A playlist that names a real clip beside it: reading that would read whatever a stranger's file names."""
    clip(tmp_path / "real.ts")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nreal.ts\n#EXT-X-ENDLIST\n")
    assert code(tmp_path / "list.m3u8") == "not_media"


@pytest.mark.parametrize(
    ("sound", "name", "rate", "loss"),
    [("pcm_s16le", "a.wav", 16_000, 1e-4), ("flac", "a.flac", 44_100, 1e-4), ("libmp3lame", "a.mp3", 44_100, 0.05), ("libopus", "a.ogg", 48_000, 0.05)],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 2])
def test_the_right_samples(tmp_path, sound, name, rate, loss, channels):
    samples = wave(channels, rate, 1.0)
    read, found = waveform(clip(tmp_path / name, None, sound=sound, samples=samples, rate=rate))
    assert found == rate
    assert read.dtype == np.float32
    assert read.shape[0] == channels
    assert abs(read.shape[1] - samples.shape[1]) <= 1200
    n = min(read.shape[1], samples.shape[1])
    assert np.abs(read[:, 2000 : n - 2000] - samples[:, 2000 : n - 2000]).max() < loss


def test_every_sample_format_is_scaled_alike(tmp_path):
    samples = wave(2, 16_000, 0.5)
    for codec in ("pcm_u8", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"):
        read, _ = waveform(clip(tmp_path / f"{codec}.wav", None, sound=codec, samples=samples))
        assert np.abs(read - samples).max() < (0.01 if codec == "pcm_u8" else 1e-4), codec


def test_tags_in_another_encoding_do_no_harm(tmp_path):
    path = clip(tmp_path / "a.mp3", None, sound="libmp3lame", samples=wave(1, 44_100, 0.5), rate=44_100)
    tag = b"COMM" + struct.pack(">I", 12) + b"\0\0" + b"\x03eng\0caf\xe9\xe8\xc6"
    size = bytes(len(tag) >> 7 * i & 0x7F for i in (3, 2, 1, 0))
    (tmp_path / "b.mp3").write_bytes(b"ID3\x04\0\0" + size + tag + path.read_bytes())
    assert waveform(tmp_path / "b.mp3")[0].shape == waveform(path)[0].shape


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9", None])
def test_damage_anywhere_is_a_media_error_or_nothing(tmp_path, codec):
    """Whatever is broken, no other exception comes out. (Formats without checksums may show wrong pixels.)"""
    generator = np.random.default_rng(0)
    samples = wave(1, 16_000, 1.6)
    whole = clip(tmp_path / "whole.mkv", codec, sound="flac", samples=samples).read_bytes()
    path = tmp_path / "broken.mkv"
    outcomes = set()
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(generator.integers(1, 4)):
            start = int(generator.integers(len(data)))
            data[start : start + 12] = generator.bytes(len(data[start : start + 12]))
        path.write_bytes(data)
        for read in (lambda path: video_frames(path, eight), waveform):
            try:
                read(path)
                outcomes.add("read")
            except MediaError as error:
                outcomes.add(error.code)
            except AbsentError:
                outcomes.add("absent")
    assert outcomes >= {"read", "decode_error"}


def test_silence_is_sound(tmp_path):
    path = clip(tmp_path / "silent.mp4", sound="aac", samples=np.zeros((1, 16_000), np.float32))
    samples, rate = waveform(path)
    assert rate == 16_000
    assert samples.shape[1] >= 16_000
    assert not samples.any()


def test_no_sound_track_is_absent_by_nature(tmp_path):
    with pytest.raises(AbsentError):
        waveform(clip(tmp_path / "mute.mp4"))


def test_sound_alone_has_no_frames(tmp_path):
    path = clip(tmp_path / "a.mp3", None, sound="libmp3lame", samples=wave(1, 44_100, 0.5), rate=44_100)
    assert code(path) == "no_stream"


def test_the_cover_of_a_song_is_no_video(tmp_path):
    path = clip(tmp_path / "a.mp3", None, sound="libmp3lame", samples=wave(1, 44_100, 0.5), rate=44_100)
    picture = image_bytes(tmp_path, "png")
    frame = b"\0image/png\0\x03\0" + picture
    tag = b"APIC" + struct.pack(">I", len(frame)) + b"\0\0" + frame
    size = bytes(len(tag) >> 7 * i & 0x7F for i in (3, 2, 1, 0))
    (tmp_path / "b.mp3").write_bytes(b"ID3\x03\0\0" + size + tag + path.read_bytes())
    assert code(tmp_path / "b.mp3") == "no_stream"
    assert waveform(tmp_path / "b.mp3")[0].shape == waveform(path)[0].shape


def image_bytes(folder, ending, shown=77):
    """The file of a picture: that of a number, or of given pixels."""
    import PIL.Image
    from extraction.zoo import picture

    path = folder / f"picture.{ending}"
    PIL.Image.fromarray(picture(shown) if isinstance(shown, int) else shown).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
def test_images_are_read_by_content(tmp_path, ending):
    pytest.importorskip("PIL", reason="Pillow is not installed")
    path = tmp_path / "picture.mp4"
    path.write_bytes(image_bytes(tmp_path, ending))
    assert number_of(image_of(File(path)).pixels) == 77
    with pytest.raises(AbsentError):
        sound_of(File(path))


def test_a_folder_of_frames_in_the_order_of_their_names(tmp_path):
    pytest.importorskip("PIL", reason="Pillow is not installed")
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:04d}.png").write_bytes(image_bytes(tmp_path, "png", number))
    (folder / "notes.txt").write_text("not a frame")
    assert numbers_of(frame_folder(folder, eight)) == eight(12)
    (tmp_path / "none").mkdir()
    with pytest.raises(MediaError, match="without images"):
        frame_folder(tmp_path / "none", eight)


def test_media_in_memory_are_taken_as_they_are():
    picture, sound = Image(np.zeros((2, 2, 3), np.uint8)), Waveform(np.zeros((1, 4), np.float32), 8000)
    assert image_of(picture) is picture
    assert sound_of(sound) is sound
    with pytest.raises(MediaError, match="an image is needed, got text"):
        image_of(Text("x"))
    with pytest.raises(MediaError, match="a waveform is needed, got text"):
        sound_of(Text("x"))


def test_the_middle_frame_stands_for_a_video(tmp_path):
    assert number_of(image_of(File(clip(tmp_path / "c.mp4", frames=9))).pixels) == 4


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real clips in '{REAL}' (set CALMRL_TEST_DATA)")
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_real_clips(number):
    frames = video_frames(REAL / f"video{number}.mp4", eight)
    assert frames.shape == (8, 640, 360, 3)
    assert 5 < frames.mean() < 250
    samples, rate = waveform(REAL / f"audio{number}.mp3")  # two of them are AAC in MP4
    assert rate in (44_100, 48_000)
    assert samples.shape[0] == 2
    assert 3 < samples.shape[1] / rate < 60
    assert samples.any()
