"""Media to what ImageBind's towers take: views of pictures and clips, mel spectrograms of pieces of sound."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from jaxtyping import Float32, UInt8

from feature_extractors.encoders.vast.preprocessing.fbank import RATE, kaldi_filterbank
from feature_extractors.encoders.vast.preprocessing.pixels import MEAN, STD, resized, short_side

# Two seconds per clip; five clips of a video, three of a sound, evenly from the first to the last that fits.
SECONDS, VIDEO_CLIPS, SOUND_CLIPS = 2, 5, 3
_SOUND_MEAN, _SOUND_DEVIATION = -4.268, 9.138


def clip_starts(duration: float, clips: int) -> list[Fraction]:
    """The exact starts in seconds of `clips` clips of two seconds; a shorter medium gives the same clip several times."""
    last = Fraction(max(duration - SECONDS, 0))
    return [last / max(clips - 1, 1) * place for place in range(clips)]


def frame_pairs(frames: int, rate: float) -> list[int]:
    """The first and the last frame of each clip of a video of so many frames at `rate` a second, end to end."""
    chosen = []
    for start in clip_starts(float(frames) / rate, VIDEO_CLIPS):
        first = min(math.ceil(rate * start), frames - 1)
        last = min(math.ceil(rate * (start + SECONDS)), frames) - 1
        chosen += [first, max(first, last)]
    return chosen


def picture(frame: UInt8[np.ndarray, "height width 3"], side: int) -> Float32[np.ndarray, "1 3 2 side side"]:
    """One view of a still picture: the short side by Pillow's bicubic filter, the centre, and the frame twice."""
    from PIL import Image

    height, width = short_side(frame.shape[0], frame.shape[1], side)
    scaled = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - side) / 2), round((width - side) / 2)
    pixels = _normalised(scaled[top : top + side, left : left + side] / 255.0)
    return np.stack([pixels, pixels], axis=1)[None]


def video_views(frames: UInt8[np.ndarray, "n height width 3"], side: int) -> Float32[np.ndarray, "views 3 2 side side"]:
    """Three crops along the longer side of every pair of frames: short side by bilinear interpolation, nothing squashed."""
    height, width = frames.shape[1:3]
    tall, wide = (side, math.floor(width / height * side)) if width >= height else (math.floor(height / width * side), side)
    spare = max(tall, wide) - side
    views = []
    whole = [_normalised(resized(frame, tall, wide, range(tall), range(wide)) / 255.0) for frame in frames]
    for first, last in zip(whole[::2], whole[1::2], strict=True):
        clip = np.stack([first, last], axis=1)
        for offset in (0, math.ceil(spare / 2), spare):
            views.append(clip[..., offset : offset + side, :] if tall > wide else clip[..., offset : offset + side])
    return np.ascontiguousarray(np.stack(views))


def _normalised(pixels: np.ndarray) -> Float32[np.ndarray, "3 height width"]:
    return ((pixels - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)


def sound_clips(samples: int) -> list[tuple[int, int]]:
    """The samples at 16 kHz of the clips of a sound of so many, as half-open spans."""
    starts = clip_starts(samples / RATE, SOUND_CLIPS)
    return [(int(start * RATE), min(int((start + SECONDS) * RATE), samples)) for start in starts]


def spectrogram(samples: Float32[np.ndarray, "channels time"], bins: int, frames: int) -> Float32[np.ndarray, "1 bins frames"]:
    """The normalised mel spectrogram of the first channel of a clip, filled up with zeros before it is normalised.

    The mean over all channels is subtracted from `samples` in place, as the released code does it: clips that overlap share their samples.
    """
    samples -= samples.mean(dtype=np.float32)
    mel = kaldi_filterbank(samples[0], bins, "hanning")[:frames]
    filled = np.zeros((frames, bins), np.float32)
    filled[: len(mel)] = mel
    return ((filled.T - np.float32(_SOUND_MEAN)) / np.float32(_SOUND_DEVIATION))[None]
