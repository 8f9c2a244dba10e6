"""CLAP: sounds and texts in one space."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32

from feature_extractors.encoders import encoders
from feature_extractors.encoders._transformers import OpenEncoder, TextTower, from_pretrained, unit
from feature_extractors.encoders.vast.preprocessing.resample import resample_span, resampled_length, source_span
from feature_extractors.media.decode import spans_of
from feature_extractors.protocols import MediaError, Medium


@encoders.register("clap/audio")
class ClapAudio(OpenEncoder):
    """CLAP on the middle ten seconds of a sound (default laion/clap-htsat-unfused, or --weights DIR/clap)"""

    kind, default, model_types = "clap", "laion/clap-htsat-unfused", ("clap",)

    @property
    def dimension(self) -> int:
        return int(self.config.projection_dim)

    @cached_property
    def processor(self) -> Any:
        return from_pretrained(self.transformers.AutoFeatureExtractor, self.source)

    def settings(self) -> dict[str, Any]:
        p = self.processor
        return {
            "rate": p.sampling_rate,
            "samples": p.nb_max_samples,
            "crop": "centre",
            "padding": "repeatpad",
            "hop": p.hop_length,
            "window": p.fft_window_size,
            "bins": p.feature_size,
            "frequencies": [p.frequency_min, p.frequency_max],
        }

    def prepare(self, medium: Medium) -> Float32[np.ndarray, "1 frames bins"]:
        """Mel spectrogram of the mean of the channels; longer sounds give their middle, where CLAP's own rule would pick at random."""
        target, most = self.processor.sampling_rate, self.processor.nb_max_samples
        start = stop = 0

        def choose(length: int, rate: int) -> list[tuple[int, int]]:
            nonlocal start, stop
            total = resampled_length(length, rate, target)
            start = max(0, (total - most) // 2)
            stop = min(start + most, total)
            return [source_span(start, stop, rate, target)]

        (samples,), rate = spans_of(medium, choose)
        middle = resample_span(samples.mean(axis=0), start, stop, rate, target)
        if len(middle) == 0:
            raise MediaError("too_short", "no samples")
        made = self.processor(
            middle,
            sampling_rate=self.processor.sampling_rate,
            truncation="rand_trunc",
            padding="repeatpad",
            return_tensors="np",
        )
        return np.asarray(made["input_features"][0], dtype=np.float32)

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "b d"]:
        return unit(self.pieces.run(self._features, np.stack(batch)))

    def _features(self, features: Any) -> Any:
        import torch

        longer = torch.zeros(len(features), 1, dtype=torch.bool, device=features.device)
        with self.autocast():
            return self.model.get_audio_features(input_features=features, is_longer=longer).pooler_output


@encoders.register("clap/text")
class ClapText(TextTower):
    """CLAP on texts of at most 77 tokens (default laion/clap-htsat-unfused, or --weights DIR/clap)"""

    kind, default, model_types = "clap", "laion/clap-htsat-unfused", ("clap",)
    length = 77

    @property
    def dimension(self) -> int:
        return int(self.config.projection_dim)
