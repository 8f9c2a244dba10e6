"""Media of many kinds, synthesised with PyAV: every frame carries its number, every sound a known wave."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 96, 64
BITS = 8


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """uint8 [height, width, 3]: the bits of `number` as two rows of four black or white fields, the lowest bit top left."""
    fields = np.array([number >> bit & 1 for bit in range(BITS)], dtype=np.uint8).reshape(2, 4) * 255
    tall = np.repeat(np.repeat(fields, height // 2, axis=0), width // 4, axis=1)
    return np.repeat(tall[..., None], 3, axis=2)


def number_of(frame: np.ndarray) -> int:
    """The number that `picture` wrote into a frame, read from the middles of the fields."""
    height, width = frame.shape[:2]
    grey = frame.mean(axis=2)
    bits = [grey[height * (2 * row + 1) // 4, width * (2 * column + 1) // 8] > 127 for row in range(2) for column in range(4)]
    return sum(int(bit) << place for place, bit in enumerate(bits))


def numbers_of(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


def wave(channels: int, rate: int, seconds: float) -> np.ndarray:
    """float32 [channels, time]: a sine of another pitch in every channel, amplitude one half."""
    time = np.arange(round(rate * seconds)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * 220 * (c + 1) * time) for c in range(channels)]).astype(np.float32)


def clip(
    path: Path,
    codec: str | None = "libx264",
    frames: int = 40,
    *,
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    sound: str | None = None,
    samples: np.ndarray | None = None,
    rate: int = 16_000,
    container_options: dict[str, str] | None = None,
    format: str | None = None,
) -> Path:
    """Write a clip of numbered frames (25 a second, or at `pts` in 1/100 s) and, if asked for, sound."""
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        if codec is not None:
            video = container.add_stream(codec, rate=25, options=options or {})
            video.width, video.height = size
            video.pix_fmt = "yuv420p" if codec != "mjpeg" else "yuvj420p"
            video.thread_count = 1
            if pts is not None:
                video.time_base = video.codec_context.time_base = Fraction(1, 100)
        if sound is not None:
            values = wave(1, rate, frames / 25) if samples is None else samples
            audio = container.add_stream(sound, rate=rate, layout={1: "mono", 2: "stereo"}[len(values)])
            if sound.startswith("wma"):
                audio.bit_rate = 128_000
        if codec is not None:
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24").reformat(format=video.pix_fmt)
                if pts is not None:
                    frame.pts, frame.time_base = pts[number], Fraction(1, 100)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if sound is not None:
            whole = np.ascontiguousarray((values * 32767).round().astype(np.int16).T.reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(whole, format="s16", layout=audio.layout.name)
            frame.sample_rate, frame.pts = rate, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def turned(path: Path, source: Path, clockwise: bool = True) -> Path:
    """A copy of an MP4 whose header asks players to turn it by 90 degrees."""
    return displayed(path, source, (0, 1, -1, 0) if clockwise else (0, -1, 1, 0))


def displayed(path: Path, source: Path, matrix: tuple[int, int, int, int]) -> Path:
    """A copy of an MP4 with the display matrix (a, b, c, d) in the header of its first track: (x, y) is shown at (a x + c y, b x + d y)."""
    data = bytearray(source.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def cut_off(path: Path, source: Path, share: float = 0.6) -> Path:
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def flipped(path: Path, source: Path, places: Sequence[float] = (0.5,), length: int = 24) -> Path:
    """A copy with `length` bytes inverted at each of some relative places."""
    data = bytearray(source.read_bytes())
    for place in places:
        start = int(len(data) * place)
        data[start : start + length] = bytes(255 - byte for byte in data[start : start + length])
    path.write_bytes(data)
    return path
