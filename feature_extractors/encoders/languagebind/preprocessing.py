"""Media to what LanguageBind's towers take: pictures, frames of clips, and mel spectrograms as pictures of three channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from feature_extractors.encoders.vast.preprocessing.fbank import kaldi_filterbank
from feature_extractors.encoders.vast.preprocessing.pixels import MEAN, STD, resized, short_side

# Keys' cubic convolution kernel as PyTorch has it.
_CUBIC = -0.75


def even_frames(total: int, count: int) -> list[int]:
    """`count` frames from the first to the last, at equal distances, rounded down."""
    return np.linspace(0, total - 1, count, dtype=int).tolist()


def clip(frames: UInt8[np.ndarray, "n height width 3"], side: int) -> Float32[np.ndarray, "1 n 3 side side"]:
    """The frames of one clip: short side by bilinear interpolation, the centre, normalised. The mirror images of training are left out."""
    height, width = frames.shape[1:3]
    size = (side, math.floor(width / height * side)) if width >= height else (math.floor(height / width * side), side)
    rows, columns = _centre(size[0], size[1], side)
    return np.stack([_normalised(resized(frame, size[0], size[1], rows, columns) / 255.0) for frame in frames])[None]


def picture(frame: UInt8[np.ndarray, "height width 3"], side: int) -> Float32[np.ndarray, "1 3 side side"]:
    """A still picture: short side by bicubic interpolation without antialiasing, the centre, normalised."""
    size = short_side(frame.shape[0], frame.shape[1], side)
    rows, columns = _centre(size[0], size[1], side)
    window = _cubic(_cubic(frame / 255.0, size[0], rows).transpose(1, 0, 2), size[1], columns).transpose(1, 0, 2)
    return _normalised(window)[None]


def pieces(frames: int, length: int) -> list[tuple[int, int]]:
    """The spectrogram's frames that a sound of so many shows, as half-open ranges: all of a short one, three pieces of a longer one.

    The released code draws at random where the pieces of the front, the middle and the back begin; here each begins at the lower middle of
    what it is drawn from.
    """
    if frames <= length:
        return [(0, frames)]
    thirds = np.array_split(np.arange(frames - length + 1), 3)
    begins = [int(third[(len(third) - 1) // 2]) if len(third) else 0 for third in thirds]
    return [(begin, begin + length) for begin in begins]


def spectrogram(
    sounds: Sequence[Float32[np.ndarray, " time"]], bins: int, length: int, mean: float, deviation: float
) -> Float32[np.ndarray, "1 3 bins length"]:
    """Mel spectrograms of one or three pieces of sound at 16 kHz as the three channels of a picture, normalised; short ones are repeated.

    That the released code first subtracts the mean of the whole sound changes nothing: the filterbank removes the mean of every frame.
    """
    made = [kaldi_filterbank(samples, bins, "hanning") for samples in sounds]
    channels = [np.tile(mel, (length // len(mel) + 1, 1))[:length].T for mel in (made if len(made) == 3 else made * 3)]
    return ((np.stack(channels) - np.float32(mean)) / np.float32(deviation * 2))[None].astype(np.float32)


def _centre(height: int, width: int, side: int) -> tuple[range, range]:
    rows, columns = (range(start, start + side) for start in (round((size - side) / 2) for size in (height, width)))
    return rows, columns


def _normalised(pixels: np.ndarray) -> Float32[np.ndarray, "3 height width"]:
    return ((pixels - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)


def _cubic(pixels: Float64[np.ndarray, "n ..."], size: int, places: range) -> Float64[np.ndarray, "places ..."]:
    """Some of `size` positions along the first axis: cubic convolution over four neighbours, half-pixel centres, edges repeated."""
    source = (np.asarray(places) + 0.5) * (len(pixels) / size) - 0.5
    first = np.floor(source)
    offset = source - first
    mixed = np.zeros((len(places), *pixels.shape[1:]))
    for tap in range(-1, 3):
        distance = np.abs(offset - tap)
        near = (_CUBIC + 2) * distance**3 - (_CUBIC + 3) * distance**2 + 1
        far = _CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        weight = np.where(distance <= 1, near, far)
        rows = np.clip(first.astype(np.int64) + tap, 0, len(pixels) - 1)
        mixed += weight.reshape(-1, *[1] * (pixels.ndim - 1)) * pixels[rows]
    return mixed
