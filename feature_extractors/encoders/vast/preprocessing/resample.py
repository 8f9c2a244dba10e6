"""Change of sampling rate by a windowed sinc, the filter that the released code uses (Hann window, six zero crossings)."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32, Float64

ZERO_CROSSINGS = 6
ROLLOFF = 0.99


@lru_cache(maxsize=16)
def kernel(original: int, target: int) -> tuple[Float64[np.ndarray, " taps"], int]:
    """The filter at steps of 1 / `target` of an input sample, centred, and how many input samples it reaches to either side.

    The rates are already divided by their common divisor.
    """
    cutoff = min(original, target) * ROLLOFF / original
    reach = math.ceil(ZERO_CROSSINGS / cutoff)
    time = np.arange(-reach * target, reach * target + 1) / target * cutoff
    time = np.clip(time, -ZERO_CROSSINGS, ZERO_CROSSINGS)
    return np.sinc(time) * np.cos(time * np.pi / ZERO_CROSSINGS / 2) ** 2 * cutoff, reach


def resample(
    samples: Float[np.ndarray, "*channels time"], rate: int, target: int = 16_000
) -> Float32[np.ndarray, "*channels time_out"]:
    """`samples` at `rate` Hz resampled to `target` Hz; ceil(time * target / rate) samples come out.

    Computed in float64. The same rate returns the samples unchanged.
    """
    if rate == target:
        return np.asarray(samples, dtype=np.float32)
    from scipy.signal import upfirdn

    common = math.gcd(rate, target)
    original, new = rate // common, target // common
    taps, reach = kernel(original, new)
    # Half the filter stands before the first input sample; filled up so that it is a whole number of output samples.
    lead = -(-reach * new // original)
    taps = np.concatenate([np.zeros(lead * original - reach * new), taps])
    out = upfirdn(taps, np.asarray(samples, dtype=np.float64), up=new, down=original)
    return out[..., lead : lead + math.ceil(samples.shape[-1] * new / original)].astype(np.float32)


def resampled_length(length: int, rate: int, target: int = 16_000) -> int:
    """How many samples `resample` makes of `length` samples."""
    return -(-length * target // rate)


def source_span(start: int, stop: int, rate: int, target: int = 16_000) -> tuple[int, int]:
    """The samples at `rate` that `resample_span` needs for the samples `start` to `stop` at `target`; the end may lie behind the sound's."""
    if rate == target:
        return start, stop
    common = math.gcd(rate, target)
    original, new = rate // common, target // common
    reach = kernel(original, new)[1] + 1
    # From a place where both rates have a sample, so that the filter falls on the same places as in the whole sound.
    first = max(0, (start * original // new - reach) // original * original)
    return first, -(-stop * original // new) + reach


def resample_span(
    samples: Float[np.ndarray, "*channels time"], start: int, stop: int, rate: int, target: int = 16_000
) -> Float32[np.ndarray, "*channels time_out"]:
    """The samples `start` to `stop` at `target` of a sound of which `samples` are those of `source_span`: the same bits as of the whole."""
    first = resampled_length(source_span(start, stop, rate, target)[0], rate, target)
    return resample(samples, rate, target)[..., start - first : stop - first]
