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
