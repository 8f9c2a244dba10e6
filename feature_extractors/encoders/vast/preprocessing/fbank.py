"""Sound to BEATs slices: kaldi mel filterbanks, VAST's normalisation, padding and choice of slices."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from calmrl_lab.errors import missing_extra
from feature_extractors.media.sampling import middle_of_segments

RATE = 16_000
FRAME_LENGTH_MS, FRAME_SHIFT_MS = 25, 10
MEAN, DEVIATION = 15.41663, 6.55582
# VAST scales samples in [-1, 1] to the range of 16-bit integers, which kaldi expects.
SCALE = 2.0**15


def mel_filterbank(samples: Float[np.ndarray, " time"], bins: int = 64) -> Float32[np.ndarray, "frames bins"]:
    """Log mel filterbank of mono samples in [-1, 1] at 16 kHz as VAST computes it: `kaldi_filterbank` of 16-bit values, povey window."""
    return kaldi_filterbank(np.asarray(samples, dtype=np.float32) * np.float32(SCALE), bins, "povey")


def kaldi_filterbank(
    samples: Float[np.ndarray, " time"], bins: int, window: Literal["povey", "hanning"]
) -> Float32[np.ndarray, "frames bins"]:
    """Log mel filterbank of mono samples at 16 kHz: kaldi's defaults, no dither, whole frames only.

    25 ms frames every 10 ms, pre-emphasis .97, mean removed a frame, power, 20 Hz to Nyquist. Fewer than 400 samples give no frame at all.
    """
    try:
        import kaldi_native_fbank as knf
    except ImportError:
        raise missing_extra("kaldi-native-fbank", "media", "an encoder of sound") from None
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = RATE
    options.frame_opts.frame_length_ms = FRAME_LENGTH_MS
    options.frame_opts.frame_shift_ms = FRAME_SHIFT_MS
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = True
    options.frame_opts.window_type = window
    options.mel_opts.num_bins = bins
    computer = knf.OnlineFbank(options)
    computer.accept_waveform(RATE, np.asarray(samples, dtype=np.float32))
    computer.input_finished()
    frames = [computer.get_frame(i) for i in range(computer.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, bins), np.float32)


def normalise(features: Float32[np.ndarray, "frames bins"]) -> Float32[np.ndarray, "frames bins"]:
    """The mean and twice the deviation that BEATs was trained with."""
    return ((features - np.float32(MEAN)) / np.float32(2 * DEVIATION)).astype(np.float32)


def padding(frames: int, slices: int, length: int = 1024) -> int:
    """Rows of zeros added after normalisation, max(length * slices - frames, length - frames % length).

    A clip whose length is a multiple of `length` gets one whole slice of zeros, which can then be picked: released behaviour.
    """
    return max(length * slices - frames, length - frames % length)


def frame_count(samples: int) -> int:
    """How many frames `mel_filterbank` makes of so many samples at 16 kHz."""
    length, shift = (RATE * ms // 1000 for ms in (FRAME_LENGTH_MS, FRAME_SHIFT_MS))
    return 1 + (samples - length) // shift if samples >= length else 0


def frame_samples(start: int, stop: int) -> tuple[int, int]:
    """The samples at 16 kHz that the frames `start` to `stop` are made of."""
    length, shift = (RATE * ms // 1000 for ms in (FRAME_LENGTH_MS, FRAME_SHIFT_MS))
    return start * shift, (stop - 1) * shift + length


def chosen_frames(frames: int, slices: int = 1, length: int = 1024) -> list[tuple[int, int]]:
    """The frames of the slices that VAST encodes, as half-open ranges; what a slice has beyond the last frame is padding.

    Frames are padded, cut into pieces of `length`, and these split into `slices` runs; the lower middle of each is taken.
    """
    pieces = (frames + padding(frames, slices, length)) // length
    return [(min(s * length, frames), min((s + 1) * length, frames)) for s in middle_of_segments(pieces, slices)]
