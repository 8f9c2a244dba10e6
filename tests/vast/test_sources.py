"""Media files to what the encoders start from: which frames, what is too short, folders of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from feature_extractors.encoders.vast.preprocessing.sources import frames, text
from feature_extractors.media.decode import sound_of
from feature_extractors.protocols import File, MediaError, Text, Vector

av = pytest.importorskip("av", reason="decoding needs the extra 'media'")


def grey(index: int) -> np.ndarray:
    return np.full((32, 48, 3), 20 * index, np.uint8)


def video(path: Path, count: int) -> File:
    """A lossless clip whose frame i has the grey value 20 i."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "bgr0"
        for index in range(count):
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey(index), format="rgb24").reformat(format="bgr0")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return File(path)


def shown(pixels: np.ndarray) -> list[int]:
    return [round(float(frame.mean()) / 20) for frame in pixels]


@pytest.mark.parametrize(
    ("total", "count", "expected"), [(10, 4, [1, 4, 6, 8]), (4, 4, [0, 1, 2, 3]), (3, 8, [0, 1, 2, 2, 2, 2, 2, 2]), (1, 8, [0])]
)
def test_the_released_choice_of_frames(tmp_path, total, count, expected):
    assert shown(frames(video(tmp_path / "clip", total), count)) == expected


def test_gram_rejects_clips_of_too_few_frames(tmp_path):
    with pytest.raises(MediaError, match="3 frames, 8 are needed") as caught:
        frames(video(tmp_path / "clip", 3), 8, reject_short=True)
    assert caught.value.code == "too_short"
    assert len(frames(video(tmp_path / "long", 8), 8, reject_short=True)) == 8
    assert len(frames(video(tmp_path / "image", 1), 8, reject_short=True)) == 1


def test_a_folder_of_images_is_a_clip_in_the_order_of_names(tmp_path):
    from PIL import Image

    for index in (3, 0, 2, 1):
        Image.fromarray(grey(index)).save(tmp_path / f"img_{index:04d}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    assert shown(frames(File(tmp_path), 2)) == [0, 2]


def test_images_of_a_folder_have_the_pixels_pillow_gives_them(tmp_path):
    from PIL import Image

    smooth = np.linspace(0, 255, 32 * 48 * 3).reshape(32, 48, 3).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "img_0001.jpg", subsampling=2)
    Image.fromarray(smooth[..., 0]).save(tmp_path / "img_0002.png")
    got = frames(File(tmp_path), 2)
    assert (got[0] == np.asarray(Image.open(tmp_path / "img_0001.jpg"))).all()
    assert (got[1] == smooth[..., :1]).all(), "grey is three equal channels"


@pytest.mark.parametrize(
    ("content", "code"), [(b"", "empty_file"), (b"<html>", "not_media"), (None, "truncated"), ("small", "decode_error")]
)
def test_a_damaged_image_in_a_folder(tmp_path, content, code):
    from PIL import Image

    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / name)
    path = tmp_path / "b.jpg"
    if content == "small":
        Image.new("RGB", (32, 64)).save(path)
    else:
        path.write_bytes(path.read_bytes()[:900] if content is None else content)
    with pytest.raises(MediaError) as caught:
        frames(File(tmp_path), 2)
    assert caught.value.code == code


def test_media_of_another_kind_are_named():
    for reader in (lambda m: frames(m, 8), sound_of, text):
        with pytest.raises(MediaError, match="needed, got vector"):
            reader(Vector(np.zeros(2, np.float32)))
    assert text(Text("a dog")) == "a dog"
