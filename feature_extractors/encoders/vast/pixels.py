"""Frames to what EVA-CLIP sees: scaled, resized and normalised as the released code does it, in float64 and without torch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
MODES = ("squash", "crop")


def resize(
    frames: Float[np.ndarray, "n height width c"] | UInt8[np.ndarray, "n height width c"], height: int, width: int
) -> Float64[np.ndarray, "n out_height out_width c"]:
    """Bilinear resize with half-pixel centres and no antialiasing.

    VAST's pinned torchvision resizes tensors without antialiasing; with it, a 640x360 frame moves by .024 normalised units on
    average and .88 at most, so the mode is part of an encoder's fingerprint.
    """
    rows, row_weight = _taps(frames.shape[1], height)
    columns, column_weight = _taps(frames.shape[2], width)
    down, across = row_weight[None, :, None, None], column_weight[None, None, :, None]
    left, right = (frames[:, :, taps] for taps in columns)
    upper, lower = (left[:, taps] * (1 - across) + right[:, taps] * across for taps in rows)
    return upper * (1 - down) + lower * down


def _taps(size: int, out: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The two source positions of each output position, and the weight of the second."""
    source = np.maximum((np.arange(out) + 0.5) * (size / out) - 0.5, 0.0)
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
    # Scaling after interpolation touches only the pixels that are kept; in float64 the order changes nothing that survives the cast.
    pixels = (frames.astype(np.float64) if (height, width) == target else resize(frames, *target)) / 255.0
    if mode == "crop":
        # torchvision's centre crop rounds half to even, as Python's round does.
        top, left = round((target[0] - side) / 2), round((target[1] - side) / 2)
        pixels = pixels[:, top : top + side, left : left + side]
    return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32))
