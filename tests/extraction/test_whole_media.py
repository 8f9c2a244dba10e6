"""Whole media: bytes behind the end and sizes that lie are no damage; pictures are shown as their headers ask."""

import io
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av", reason="the media extra is not installed")
pytest.importorskip("PIL", reason="the media extra is not installed")

from extraction.zoo import clip, displayed, number_of, numbers_of, picture, wave
from PIL import Image, ImageOps

from feature_extractors.file_names import is_system_file
from feature_extractors.media import sound as sound_module
from feature_extractors.media.bare_streams import ac3_frame, adts_frame, mpeg_audio_frame, stream_end
from feature_extractors.media.containers import is_cut_off
from feature_extractors.media.decode import frame_folder, image_of, spans_of, video_frames, waveform
from feature_extractors.media.sound import Hearing, sound_chunks, spans
from feature_extractors.protocols import File, MediaError, Waveform

NOISE = np.random.default_rng(7)
ID3 = b"ID3\x04\0\0\0\0\x03\x74" + NOISE.bytes(500)
APPENDED = {
    "zeros": bytes(3000),
    "tag": b"TAG" + bytes(125),
    "id3v2": ID3,
    "lyrics": b"LYRICSBEGIN" + b"la la " * 40 + b"000250LYRICS200TAG" + bytes(125),
    "page": b"<!-- cached copy -->\n" * 12,
    "noise": NOISE.bytes(2500),
    "a byte": b"\n",
    "three bytes": b"abc",
}
SOUNDS = {
    "a.wav": "pcm_s16le", "b.wav": "adpcm_ms", "a.mp3": "libmp3lame", "a.mp2": "mp2", "a.aac": "aac", "a.m4a": "aac", "a.ac3": "ac3", "a.eac3": "eac3",
    "a.flac": "flac", "a.ogg": "libopus", "a.aiff": "pcm_s16be", "a.au": "pcm_s16be", "a.wma": "wmav2", "a.wv": "wavpack", "a.tta": "tta", "a.mka": "ac3",
    "a.caf": "pcm_s16be", "a.w64": "pcm_s16le", "a.ts": "aac", "a.flv": "aac",
}  # fmt: skip
VIDEOS = {
    "a.mp4": ("libx264", "aac"), "a.mov": ("libx264", "aac"), "a.mkv": ("libx264", "flac"), "a.webm": ("libvpx-vp9", "libopus"), "a.avi": ("mpeg4", "mp2"),
    "a.wmv": ("wmv2", "wmav2"), "a.3gp": ("mpeg4", "aac"), "a.flv": ("libx264", "aac"), "a.ts": ("libx264", "aac"),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUNDS)
def test_bytes_behind_a_sound_are_not_heard(tmp_path, name):
    given = 48_000 if SOUNDS[name] == "libopus" else 44_100
    path = clip(tmp_path / name, None, sound=SOUNDS[name], samples=wave(2, given, 0.6), rate=given)
    whole, rate = waveform(path)
    assert rate == given
    assert abs(whole.shape[1] - 0.6 * given) < 4000
    assert not is_cut_off(path)
    for what, bytes_behind in APPENDED.items():
        longer = tmp_path / "longer"
        longer.write_bytes(path.read_bytes() + bytes_behind)
        found, _ = waveform(longer)
        assert np.array_equal(found, whole), what


@pytest.mark.parametrize("name", VIDEOS)
def test_bytes_behind_a_video_are_not_seen(tmp_path, name):
    codec, sound = VIDEOS[name]
    options = {"cpu-used": "8", "deadline": "realtime"} if codec == "libvpx-vp9" else {}
    path = clip(tmp_path / name, codec, 12, options=options, sound=sound, rate=48_000 if sound == "libopus" else 44_100)
    assert numbers_of(video_frames(path, range)) == list(range(12))
    heard, _ = waveform(path)
    for what, bytes_behind in APPENDED.items():
        longer = tmp_path / "longer"
        longer.write_bytes(path.read_bytes() + bytes_behind)
        assert numbers_of(video_frames(longer, range)) == list(range(12)), what
        assert np.array_equal(waveform(longer)[0], heard), what


def wav(declared_file, declared_data, samples=4000):
    pcm = (np.sin(np.arange(samples) / 5) * 9000).astype("<i2").tobytes()
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", declared_file, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16, b"data", declared_data
    )
    return head + pcm


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0, 0x7F000000, 1 << 31, (1 << 32) - 1]), st.integers(0, 300), st.booleans())
def test_placeholder_sizes_of_a_wav_file_mean_as_far_as_it_goes(tmp_path_factory, size, below, riff_is_right):
    size = max(0, size - below) if size >> 31 else size + (below if size else 0)
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    path.write_bytes(wav(36 + 8000 if riff_is_right else size, size))
    assert waveform(path)[0].shape == (1, 4000)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 1 << 30))
def test_a_true_size_shows_that_a_wav_file_breaks_off(tmp_path_factory, lacking):
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    path.write_bytes(wav(36 + 8000 + lacking + lacking % 2, 8000 + lacking + lacking % 2))
    with pytest.raises(MediaError) as caught:
        waveform(path)
    assert caught.value.code == "truncated"
    # Where the samples are all there, a wrong size around them takes nothing away.
    path.write_bytes(wav(36 + 8000 + lacking, 8000))
    assert waveform(path)[0].shape == (1, 4000)


@pytest.mark.parametrize("kind", ["aiff", "au", "caf"])
def test_placeholder_sizes_of_other_sounds(tmp_path, kind):
    path = clip(tmp_path / f"a.{kind}", None, sound="pcm_s16be", samples=wave(1, 16_000, 0.5))
    whole, _ = waveform(path)
    data = bytearray(path.read_bytes())
    if kind == "au":
        data[8:12] = b"\xff" * 4
    elif kind == "aiff":
        place = data.index(b"SSND") + 4
        data[place : place + 4] = (0x7F000008).to_bytes(4, "big")
    else:
        place = data.index(b"data") + 4
        data[place : place + 8] = b"\xff" * 8
    path.write_bytes(data)
    assert np.array_equal(waveform(path)[0], whole)


def test_a_box_that_says_it_is_longer_than_the_samples(tmp_path):
    path = clip(tmp_path / "a.mp4", options={"g": "12"}, container_options={"movflags": "faststart"}, sound="aac")
    data = bytearray(path.read_bytes())
    place = data.index(b"mdat") - 4
    data[place : place + 4] = (int.from_bytes(data[place : place + 4], "big") + 1000).to_bytes(4, "big")
    path.write_bytes(data)
    assert numbers_of(video_frames(path, range)) == list(range(40))
    waveform(path)
    path.write_bytes(data[:-200])
    for read in (lambda: video_frames(path, range), lambda: waveform(path)):
        with pytest.raises(MediaError) as caught:
            read()
        assert caught.value.code == "truncated"


@pytest.mark.parametrize(
    ("frame", "codec", "ending"), [(mpeg_audio_frame, "libmp3lame", "mp3"), (adts_frame, "aac", "aac"), (ac3_frame, "ac3", "ac3"), (ac3_frame, "eac3", "eac3")]
)  # fmt: skip
@pytest.mark.parametrize("rate", [44_100, 48_000, 32_000])
def test_frames_of_bare_streams_stand_end_to_end(tmp_path, frame, codec, ending, rate):
    path = clip(tmp_path / f"a.{ending}", None, sound=codec, samples=wave(2, rate, 0.4), rate=rate)
    data = path.read_bytes()
    place = data.index(b"\xff\xfb") if ending == "mp3" else 0
    while place < len(data):
        assert frame(data[place : place + 8]), place
        place += frame(data[place : place + 8])
    assert place == len(data)
    with path.open("rb") as file:
        assert stream_end(file) == len(data)


def test_tags_between_songs_end_nothing(tmp_path):
    path = clip(tmp_path / "a.mp3", None, sound="libmp3lame", samples=wave(1, 44_100, 0.4), rate=44_100)
    song = path.read_bytes()
    path.write_bytes(song + ID3 + song)
    with path.open("rb") as file:
        assert stream_end(file) == 2 * len(song) + len(ID3)


# Images


def saved(kind, pixels=None, mode="RGB", **options):
    image = Image.fromarray(picture(77) if pixels is None else pixels)
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


def first(path, data):
    path.write_bytes(data)
    return video_frames(path, lambda count: [count // 2])[0]


def test_pictures_with_something_behind_them_are_the_pictures(tmp_path):
    movie = clip(tmp_path / "a.mp4", frames=3).read_bytes()
    jpeg = saved("JPEG")
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM"):
        data = saved(kind)
        whole = first(tmp_path / "plain", data)
        assert number_of(whole) == 77, kind
        for behind in (*([movie] if kind != "JPEG2000" else []), jpeg, *APPENDED.values()):
            assert np.array_equal(first(tmp_path / "longer", data + behind), whole), kind


def test_the_first_picture_of_a_jpeg_with_two(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(picture(77)).save(buffer, "MPO", save_all=True, append_images=[Image.fromarray(picture(3)).convert("L")])
    assert number_of(first(tmp_path / "a.jpg", buffer.getvalue())) == 77


def test_a_jpeg_without_its_end_marker_is_whole_and_one_without_its_end_is_not(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 3}):
        data = saved("JPEG", noise, **options)
        whole = first(tmp_path / "a.jpg", data)
        assert np.array_equal(first(tmp_path / "b.jpg", data[:-2]), whole)
        for share in (0.4, 0.7, 0.95):
            for end in (b"", b"\xff\xd9"):
                with pytest.raises(MediaError):
                    first(tmp_path / "c.jpg", data[: int(len(data) * share)] + end)


def test_a_gif_without_its_trailer(tmp_path):
    frames = [Image.fromarray(picture(number)) for number in range(4)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=100)
    data = buffer.getvalue()
    for whole in (data, data[:-1], data + b"\0\0", data[:-1] + b"\0"):
        (tmp_path / "a.gif").write_bytes(whole)
        assert numbers_of(video_frames(tmp_path / "a.gif", range)) == [0, 1, 2, 3]
    (tmp_path / "a.gif").write_bytes(data[:-30])
    with pytest.raises(MediaError, match="breaks off"):
        video_frames(tmp_path / "a.gif", lambda _: [0])


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "AVIF"])
def test_moving_images_have_frames(tmp_path, kind):
    frames = [Image.fromarray(picture(number)) for number in range(5)]
    frames[0].save(tmp_path / "a", kind, save_all=True, append_images=frames[1:], duration=100)
    assert numbers_of(video_frames(tmp_path / "a", range)) == [0, 1, 2, 3, 4]
    assert number_of(image_of(File(tmp_path / "a")).pixels) == 2


@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd"]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK"])
def test_variants_of_tiff(tmp_path, compression, mode):
    if compression == "jpeg" and mode == "RGBA":
        pytest.skip("JPEG has no transparency")
    for big in (False, True):
        assert number_of(first(tmp_path / "a.tif", saved("TIFF", mode=mode, compression=compression, big_tiff=big))) == 77


def test_sixteen_bits_are_scaled_and_thirty_two_refused(tmp_path):
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    for kind in ("PNG", "TIFF"):
        pixels = first(tmp_path / "a", saved(kind, values, mode=None))
        assert np.abs(pixels[..., 0] - values / 257).max() <= 0.5
    for other in (values.astype(np.int32), values.astype(np.float32)):
        with pytest.raises(MediaError, match="32 bits"):
            first(tmp_path / "a", saved("TIFF", other, mode=None))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(9))
def test_the_exif_orientation_is_followed_everywhere(tmp_path, kind, orientation):
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    path = tmp_path / "frames" / f"0001.{kind.lower()}"
    path.parent.mkdir()
    image.save(path, kind, exif=exif)
    right = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert np.array_equal(video_frames(path, lambda _: [0])[0], right)
    assert np.array_equal(frame_folder(path.parent, lambda _: [0])[0], right)
    assert np.array_equal(image_of(File(path)).pixels, right)


@pytest.mark.parametrize(
    "matrix", [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]
)
@pytest.mark.parametrize("ending", ["mp4", "mov"])
def test_the_whole_display_matrix_is_followed(tmp_path, matrix, ending):
    upright = clip(tmp_path / f"upright.{ending}", frames=3, size=(96, 64))
    plain = video_frames(upright, range)
    shown = video_frames(displayed(tmp_path / f"turned.{ending}", upright, matrix), range)
    a, b, c, d = matrix
    expected = np.zeros_like(plain if a else plain.transpose(0, 2, 1, 3))
    height, width = plain.shape[1:3]
    for y in range(height):
        for x in range(width):
            across, down = a * x + c * y, b * x + d * y
            expected[
                :,
                down + (expected.shape[1] - 1 if down < 0 or b + d < 0 else 0),
                across + (expected.shape[2] - 1 if a + c < 0 else 0),
            ] = plain[:, y, x]
    assert np.array_equal(shown, expected)


# Long sounds


@pytest.mark.parametrize("kept", [1 << 24, 1000])
def test_spans_of_a_sound_are_those_of_the_whole(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(sound_module, "_KEPT_VALUES", kept)
    path = clip(tmp_path / "a.mp3", None, sound="libmp3lame", samples=wave(2, 44_100, 1.0), rate=44_100)
    whole, rate = waveform(path)
    asked = []

    def choose(length, found):
        asked.append((length, found))
        return [(0, 10), (5000, 9000), (length - 7, length), (8000, 8000)]

    parts, found = spans(path, choose)
    assert found == rate
    assert asked == [(whole.shape[1], rate)]
    for part, (start, stop) in zip(parts, choose(whole.shape[1], rate), strict=True):
        assert np.array_equal(part, whole[:, start:stop])
    in_memory, _ = spans_of(Waveform(whole, rate), choose)
    assert all(np.array_equal(one, two) for one, two in zip(parts, in_memory, strict=True))


def test_the_sound_of_a_video_is_mixed_as_ffmpeg_mixes_it(tmp_path):
    samples = wave(2, 44_100, 1.6)
    video = clip(tmp_path / "a.mkv", sound="flac", samples=samples, rate=44_100)
    mixed, rate = waveform(video, Hearing(track_rate=22_050))
    assert rate == 22_050
    assert mixed.shape == (1, 1.6 * 22_050)
    assert np.abs(mixed[0, 100:-100] - samples.mean(axis=0)[::2][100:-100]).max() < 2e-3
    # A file that is only sound is no video's track.
    alone = clip(tmp_path / "a.flac", None, sound="flac", samples=samples, rate=44_100)
    assert waveform(alone, Hearing(track_rate=22_050))[1] == 44_100


@pytest.mark.parametrize(("rate", "frame"), [(48_000, 1152), (44_100, 1152), (22_050, 576)])
def test_the_lead_in_of_an_mp3_file_as_libmad_hears_it(tmp_path, rate, frame):
    path = clip(tmp_path / "a.mp3", None, sound="libmp3lame", samples=wave(1, rate, 1.0), rate=rate)
    trimmed, _ = waveform(path)
    heard, _ = waveform(path, Hearing(lead_in=True))
    lead = frame + 1105
    assert not heard[:, :frame].any()
    assert np.array_equal(heard[:, lead : lead + trimmed.shape[1]], trimmed)
    assert heard.shape[1] % frame == 0, "every frame is heard whole"
    if rate == 48_000:
        assert round(lead / rate * 1000) == 47
    for chunk, found in sound_chunks(path, Hearing(lead_in=True)):
        assert (len(chunk), found) == (1, rate)


# What systems leave behind


def test_system_files_are_no_frames(tmp_path):
    for name in ("._0001.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "0001.png").write_bytes(saved("PNG"))
    assert numbers_of(frame_folder(tmp_path, range)) == [77]
    assert is_system_file("__MACOSX")
    assert not is_system_file("_1.png")


CASES = os.path.join(os.path.dirname(__file__), "..", "..", "..", "shared", "cases")


@pytest.mark.skipif(not os.path.isdir(CASES), reason="the cases of other people's files are not here")
def test_the_cases():
    from pathlib import Path

    cases = Path(CASES)
    same = [waveform(path)[0] for path in sorted((cases / "04").glob("*.wav"))]
    assert all(sound.shape == (1, 32_000) and np.array_equal(sound, same[0]) for sound in same)
    songs = {path.stem: waveform(path)[0] for path in (cases / "05").glob("*.mp3")}
    assert songs["plain"].shape == (2, 132_300)
    assert all(np.array_equal(song, songs["plain"]) for song in songs.values())
    photos = [image_of(File(path)).pixels for path in (cases / "06" / "photos" / "dog").iterdir()]
    assert all(np.array_equal(photo, photos[0]) for photo in photos)


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
def test_speech_is_embedded_piece_by_piece_with_the_bits_of_the_whole(monkeypatch, rate):
    pytest.importorskip("onnxruntime", reason="the demo extra is not installed")
    from feature_extractors.encoders import speech_embedding

    try:
        encoder = speech_embedding.SpeechEmbedding()
    except Exception as error:
        pytest.skip(f"no speech model: {error}")
    samples = np.random.default_rng(rate).uniform(-1.1, 1.1, (2, rate * 5 + 17)).astype(np.float32)
    samples[:, rate : 2 * rate] *= 1e-5
    sound = Waveform(samples, rate)
    whole = encoder.prepare(sound)
    mel = encoder._session("melspectrogram").run(None, {"input": whole[None]})[0][0, 0]
    monkeypatch.setattr(speech_embedding, "_BLOCK", 9000)
    monkeypatch.setattr(speech_embedding, "_FRAMES", 130)
    monkeypatch.setattr(
        speech_embedding, "chunks_of", lambda _: ((samples[:, at : at + 1152], rate) for at in range(0, samples.shape[1], 1152))
    )
    assert np.array_equal(encoder.prepare(sound), whole)
    assert np.array_equal(encoder._mel(whole), mel)


def test_heic_is_shown_by_its_package_and_refused_without_it(tmp_path, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif", reason="the heic extra is not installed")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    held = pillow_heif.from_bytes("RGB", (96, 64), pixels.tobytes())
    held.save(tmp_path / "a.heic", quality=-1, chroma=444, matrix_coefficients=0)
    (tmp_path / "b.heic").write_bytes((tmp_path / "a.heic").read_bytes() + b"behind" * 50)
    for name in ("a.heic", "b.heic"):
        shown = video_frames(tmp_path / name, lambda total: [0] * total)
        assert shown.shape == (1, 64, 96, 3)
        assert np.abs(shown[0].astype(int) - pixels).max() <= 2
    (tmp_path / "c.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:-2000])
    with pytest.raises(MediaError):
        video_frames(tmp_path / "c.heic", lambda total: [0])
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(MediaError, match="pip install 'calmrl-lab\\[heic\\]'"):
        video_frames(tmp_path / "a.heic", lambda total: [0])
