"""Change of sampling rate by a windowed sinc, the filter that the released code uses (Hann window, six zero crossings)."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32, Float64

ZERO_CROSSINGS = 6
ROLLOFF = 0.99


@lru_cache(maxsize=16)
def kernel(original: int, target: int) -> tuple[Float64[np.ndarray, "target taps"], int]:
    """One filter for each of the `target` phases (rates already divided by their common divisor), and the filters' half width."""
    base = min(original, target) * ROLLOFF
    width = math.ceil(ZERO_CROSSINGS * original / base)
    taps = np.arange(-width, width + original) / original
    time = np.clip((taps[None, :] - np.arange(target)[:, None] / target) * base, -ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = np.cos(time * np.pi / ZERO_CROSSINGS / 2) ** 2
    return np.sinc(time) * window * base / original, width


def resample(
    samples: Float[np.ndarray, "*channels time"], rate: int, target: int = 16_000
) -> Float32[np.ndarray, "*channels time_out"]:
    """`samples` at `rate` Hz resampled to `target` Hz; ceil(time * target / rate) samples come out.

    Computed in float64. The same rate returns the samples unchanged.
    """
    if rate == target:
        return np.asarray(samples, dtype=np.float32)
    common = math.gcd(rate, target)
    original, new = rate // common, target // common
    filters, width = kernel(original, new)
    time = samples.shape[-1]
    spread = [(0, 0)] * (samples.ndim - 1) + [(width, width + original)]
    padded = np.pad(np.asarray(samples, dtype=np.float64), spread)
    windows = np.lib.stride_tricks.sliding_window_view(padded, filters.shape[1], axis=-1)[..., ::original, :]
    out = (windows @ filters.T).reshape(*samples.shape[:-1], -1)
    return out[..., : math.ceil(time * new / original)].astype(np.float32)
