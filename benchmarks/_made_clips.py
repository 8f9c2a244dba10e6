"""Clips with pictures and sound made here, laid out as MSR-VTT is: for measuring an extraction where no data set may be had."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_RATE = 44_100
_CHUNK = 1024


def write_msrvtt(folder: Path, clips: int, distinct: int, frames: int, size: tuple[int, int], vocabulary: int) -> None:
    """`clips` test items with captions and, for every other one, a subtitle; their videos are links to `distinct` different ones.

    `frames` of `size` (width, height) at 25 a second, H.264 with a key frame every two seconds, and stereo AAC of the same length.
    """
    (folder / "annotations").mkdir(parents=True)
    (folder / "videos").mkdir()
    draw = np.random.default_rng(0)

    def text(length: int) -> str:
        return " ".join(f"word{place}" for place in draw.integers(104, vocabulary, length))

    rows = [{"video_id": f"video{i}", "desc": text(12), "subtitle": text(40) if i % 2 else ""} for i in range(clips)]
    (folder / "annotations" / "descs_ret_test.json").write_text(json.dumps(rows))
    sources = [folder / f"source{number}.mp4" for number in range(distinct)]
    with ThreadPoolExecutor(distinct) as threads:
        list(threads.map(lambda number: write_clip(sources[number], number, frames, size), range(distinct)))
    for number in range(clips):
        os.link(sources[number % distinct], folder / "videos" / f"video{number}.mp4")


def write_clip(path: Path, seed: int, frames: int, size: tuple[int, int]) -> None:
    """A window that wanders over a textured picture, and a tone that rises over noise."""
    width, height = size
    draw = np.random.default_rng(seed)
    blocks = draw.integers(0, 200, (height // 8 + 40, width // 8 + 40, 3), dtype=np.uint8)
    canvas = blocks.repeat(8, axis=0).repeat(8, axis=1) + draw.integers(
        0, 40, (8 * len(blocks), 8 * blocks.shape[1], 3), dtype=np.uint8
    )
    time = np.arange(frames * _RATE // 25) / _RATE
    tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * seed + 100 * time) * time)
    sound = (np.stack([tone, tone[::-1]]) + 0.02 * draw.standard_normal((2, len(time)))).astype(np.float32)
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=25, options={"g": "50", "preset": "veryfast", "threads": "1"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=_RATE, layout="stereo")
        for number in range(frames):
            top, left = 3 * number % 320, 5 * number % 320
            window = np.ascontiguousarray(canvas[top : top + height, left : left + width])
            container.mux(video.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        for start in range(0, sound.shape[1], _CHUNK):
            piece = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(sound[:, start : start + _CHUNK]), format="fltp", layout="stereo"
            )
            piece.sample_rate, piece.pts, piece.time_base = _RATE, start, Fraction(1, _RATE)
            container.mux(audio.encode(piece))
        container.mux(video.encode())
        container.mux(audio.encode())
