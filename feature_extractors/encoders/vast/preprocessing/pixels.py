"""Frames to what EVA-CLIP sees: scaled, resized and normalised as the released code does it, in float64 and without torch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, UInt8

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
MODES = ("squash", "crop")


def resized(
    frame: UInt8[np.ndarray, "height width c"], height: int, width: int, rows: range, columns: range
) -> Float64[np.ndarray, "rows columns c"]:
    """The window `rows` x `columns` of a frame resized to `height` x `width`: bilinear, half-pixel centres, no antialiasing.

    VAST's pinned torchvision resizes tensors without antialiasing; with it, a 640x360 frame moves by .024 normalised units on
    average and .88 at most, so the mode is part of an encoder's fingerprint.
    """
    (upper, lower), down = _taps(frame.shape[0], height, rows)
    (left, right), across = _taps(frame.shape[1], width, columns)
    # What lies outside the window is never touched.
    frame = frame[:, left[0] : right[-1] + 1]
    left, right = left - left[0], right - left[0]
    down, across = down[:, None, None], across[:, None]
    mixed = frame[upper] * (1 - down)
    mixed += frame[lower] * down
    window = mixed[:, left] * (1 - across)
    window += mixed[:, right] * across
    return window


def _taps(size: int, out: int, places: range) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The two source positions of some of `out` output positions, and the weight of the second."""
    source = np.maximum((np.asarray(places) + 0.5) * (size / out) - 0.5, 0.0)
    first = np.minimum(source.astype(np.int64), size - 1)
    return (first, np.minimum(first + 1, size - 1)), source - first


def short_side(height: int, width: int, side: int) -> tuple[int, int]:
    """Size after the shorter side becomes `side`; the longer one is truncated, as torchvision does."""
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def transform(
    frames: UInt8[np.ndarray, "n height width 3"], mode: str = "squash", side: int = 224
) -> Float32[np.ndarray, "n 3 side side"]:
    """uint8 RGB frames to normalised float32 pixels.

    `squash` resizes to a square whatever the aspect (released default); `crop` resizes the short side and takes the centre (the
    MSR-VTT and VAST-150K configurations). Scaling to [0, 1] and everything after it runs in float64; the cast comes last.
    """
    assert mode in MODES, mode
    height, width = frames.shape[1:3]
    target = (side, side) if mode == "squash" else short_side(height, width, side)
    # torchvision's centre crop rounds half to even, as Python's round does.
    rows, columns = (range(start, start + side) for start in (round((length - side) / 2) for length in target))
    pixels = np.empty((len(frames), 3, side, side), np.float32)
    # Frame by frame, so that what is in work fits the processor's cache.
    for frame, chosen in zip(frames, pixels, strict=True):
        # Scaling after interpolation; in float64 the order changes nothing that survives the cast.
        window = resized(frame, *target, rows, columns)
        window /= 255.0
        window -= MEAN
        window /= STD
        chosen[...] = window.transpose(2, 0, 1)
    return pixels
