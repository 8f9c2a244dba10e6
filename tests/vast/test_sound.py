"""Filterbanks, slices and resampling against the formulas of kaldi and of windowed-sinc interpolation, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from vast.golden import PATH, RATES, signal
from vast.slices import cut

from feature_extractors.encoders.vast.preprocessing.fbank import chosen_frames, mel_filterbank, normalise, padding
from feature_extractors.encoders.vast.preprocessing.resample import resample, resample_span, resampled_length, source_span

EPSILON = 1.1920928955078125e-07
# The first frame of a 440 Hz tone of amplitude .5 in 8 mel bins, log units.
GOLDEN = [24.749155, 25.408281, 13.686108, 8.405265, 5.778141, 3.806992, 2.107816, 0.50287]


def reference_filterbank(samples, bins):
    """Kaldi's compute-fbank-feats with its defaults and no dither: 400-sample frames every 160, 512-point spectrum, 20 to 8000 Hz."""
    signal = samples.astype(np.float64) * 2**15
    frames = np.stack([signal[start : start + 400] for start in range(0, len(signal) - 399, 160)])
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    power = np.abs(np.fft.rfft(frames * window, n=512, axis=1)) ** 2

    def mel(hertz):
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    edges = np.linspace(mel(20.0), mel(8000.0), bins + 2)
    centres = mel(np.arange(256) * 16000 / 512)
    rising = (centres[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - centres[None]) / (edges[2:] - edges[1:-1])[:, None]
    weights = np.clip(np.minimum(rising, falling), 0, None)
    return np.log(np.maximum(power[:, :256] @ weights.T, EPSILON))


@pytest.fixture
def tone():
    """0.4 s of a rising tone over noise, at 16 kHz, in [-1, 1]."""
    time = np.arange(6400) / 16000
    noise = np.random.default_rng(0).standard_normal(6400)
    return (0.4 * np.sin(2 * np.pi * (300 + 2000 * time) * time) + 0.02 * noise).astype(np.float32)


@pytest.mark.parametrize("bins", [64, 23])
def test_the_filterbank_is_kaldis(tone, bins):
    got = mel_filterbank(tone, bins)
    assert got.shape == (38, bins)
    assert got.dtype == np.float32
    # float32 inside against float64 here: about 1e-5 of the normalised units that BEATs sees.
    assert_allclose(got, reference_filterbank(tone, bins), atol=2e-3)
    assert_allclose(normalise(got), (reference_filterbank(tone, bins) - 15.41663) / (2 * 6.55582), atol=2e-4)


def test_golden_filterbank():
    # 560 samples of a 440 Hz tone give two frames; the values are those of the reference above, kept so that both cannot drift.
    samples = (0.5 * np.sin(2 * np.pi * 440 * np.arange(560) / 16000)).astype(np.float32)
    golden = reference_filterbank(samples, 8)
    # The loudest bin is e^25 times the quietest, so float32 leaves 3e-3 there.
    assert_allclose(mel_filterbank(samples, 8), golden, atol=5e-3)
    assert_allclose(golden[0], GOLDEN, atol=5e-6)


def test_the_arrays_torchaudio_made():
    # Of torchaudio 2.11, by the calls of the released code (golden.py); test_third_party compares them with an installed one.
    golden = np.load(PATH)
    got = mel_filterbank(signal(16000, 0.2))
    assert got.shape == golden["fbank"].shape == (18, 64)
    assert_allclose(got, golden["fbank"], atol=1e-3)
    assert_allclose(normalise(got), normalise(golden["fbank"]), atol=1e-4)
    for rate in RATES:
        assert_allclose(resample(signal(rate, 0.02), rate), golden[f"from_{rate}"], atol=1e-5, err_msg=f"{rate} Hz")


def test_silence_is_the_floor_and_dc_is_silence():
    for value in (0.0, 0.25):
        assert_allclose(mel_filterbank(np.full(800, value, np.float32)), np.log(EPSILON), atol=1e-5)


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (16000, 98)])
def test_only_whole_frames_count(samples, frames):
    assert mel_filterbank(np.zeros(samples, np.float32)).shape == (frames, 64)


@pytest.mark.parametrize(
    ("frames", "slices", "rows", "picked"),
    [
        (1, 1, 1023, [0]),  # shorter than a slice: filled up with zeros
        (1023, 1, 1, [0]),
        (1024, 1, 1024, [0]),  # a multiple: one whole slice of zeros follows
        (2048, 1, 1024, [1]),  # 3 slices, the last of zeros; the lower middle is the second
        (2998, 1, 74, [1]),  # 30 s: 3 slices, only the middle 10.24 s is heard
        (1024, 2, 1024, [0, 1]),  # the slice of zeros is picked
        (500, 3, 2572, [0, 1, 2]),
        (2998, 3, 74, [0, 1, 2]),
        (2998, 2, 74, [0, 2]),  # runs [0, 1] and [2]: the lower middle of the first is 0
        (5000, 2, 120, [1, 3]),  # runs [0, 1, 2] and [3, 4]
    ],
)
def test_slices_follow_the_released_rule(frames, slices, rows, picked):
    assert padding(frames, slices) == rows
    features = np.repeat(np.arange(1, frames + 1, dtype=np.float32)[:, None], 4, axis=1)
    got = cut(features, slices)
    padded = np.concatenate([features, np.zeros((rows, 4), np.float32)])
    assert_array_equal(got, np.stack([padded[i * 1024 : (i + 1) * 1024] for i in picked]))
    assert chosen_frames(frames, slices) == [(min(i * 1024, frames), min((i + 1) * 1024, frames)) for i in picked]


def reference_resample(samples, rate, target):
    """Each output sample as the sum over input samples of a Hann-windowed sinc, 6 zero crossings, roll-off .99."""
    cutoff = min(rate, target) * 0.99
    out = np.arange(int(np.ceil(len(samples) * target / rate))) / target
    time = (np.arange(len(samples))[None] / rate - out[:, None]) * cutoff
    window = np.where(np.abs(time) < 6, np.cos(time * np.pi / 12) ** 2, 0)
    return (np.sinc(time) * window * cutoff / rate) @ samples.astype(np.float64)


# 11127 Hz shares no divisor with 16 kHz: every output sample has a filter of its own.
@pytest.mark.parametrize("rate", [8000, 11025, 11127, 22050, 24000, 32000, 44100, 48000])
def test_resampling_is_a_windowed_sinc(rate):
    samples = np.random.default_rng(rate).standard_normal(rate // 20).astype(np.float32)
    assert_allclose(resample(samples, rate), reference_resample(samples, rate, 16000), atol=2e-6)


def test_channels_are_resampled_alone_and_the_same_rate_changes_nothing():
    stereo = np.random.default_rng(0).standard_normal((2, 2205)).astype(np.float32)
    both = resample(stereo, 44100)
    assert both.shape == (2, 800)
    assert_allclose(both[1], resample(stereo[1], 44100), atol=1e-7)
    assert_array_equal(resample(stereo, 16000), stereo)
    assert resample(np.zeros((2, 0), np.float32), 44100).shape == (2, 0)


@given(st.integers(0, 4000), st.integers(1, 6000), st.sampled_from([8000, 11_127, 16_000, 22_050, 32_000, 44_100, 48_000]))
@settings(max_examples=60, deadline=None)
def test_a_span_of_a_resampled_sound_has_the_bits_of_the_whole(start, length, rate):
    samples = np.random.default_rng(rate).standard_normal(rate // 2).astype(np.float32)
    whole = resample(samples, rate)
    assert len(whole) == resampled_length(len(samples), rate)
    stop = min(start + length, len(whole))
    first, last = source_span(start, stop, rate)
    assert_array_equal(resample_span(samples[first:last], start, stop, rate), whole[start:stop])
