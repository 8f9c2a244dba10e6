"""Sound to features: BEATs on 64 mel bins, tokens averaged over the slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float32

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders.vast.batching import Runs
from feature_extractors.encoders.vast.encoder import VastEncoder, mean_of_runs
from feature_extractors.encoders.vast.preprocessing import sources
from feature_extractors.encoders.vast.preprocessing.fbank import cut, mel_filterbank, normalise
from feature_extractors.encoders.vast.preprocessing.resample import resample
from feature_extractors.protocols import MediaError, Medium

if TYPE_CHECKING:
    from torch import Tensor, nn


class AudioEncoder(VastEncoder):
    """BEATs on 64 mel bins: tokens of `slices` slices of 10.24 s, averaged.

    `channel` is `first` (PMRL and VAST: the first channel after resampling) or `mean` (GRAM: mono before resampling).
    """

    part = "audio"
    modality = "audio"
    rows = 32
    slices: ClassVar[int] = 1
    channel: ClassVar[str] = "first"

    def __init__(
        self,
        device: str = "cpu",
        weights: Path | None = None,
        slices: int | None = None,
        channel: str | None = None,
        precision: str = "fp32",
        batch_rows: int | None = None,
    ) -> None:
        super().__init__(device, weights, precision, batch_rows)
        self.slice_count = slices or self.slices
        self.channel_rule = channel or self.channel
        if self.channel_rule not in ("first", "mean"):
            raise CalmrlError(f"unknown channel rule '{self.channel_rule}'", hint="known: first, mean")

    def settings(self) -> dict[str, Any]:
        return {"slices": self.slice_count, "channel": self.channel_rule, "resampling": "sinc-hann-6", "filterbank": "kaldi-64"}

    def build(self, weights: Mapping[str, Tensor]) -> nn.Module:
        from feature_extractors.encoders.vast.networks import beats

        return beats.load(weights, self.architecture.audio)

    def prepare(self, medium: Medium) -> Float32[np.ndarray, "slices frames mel"]:
        """Normalised filterbank slices. Raises MediaError `too_short` for less than one frame of 25 ms."""
        samples, rate = sources.sound(medium)
        mono = samples.mean(axis=0) if self.channel_rule == "mean" else samples[0]
        sizes = self.architecture.audio
        features = mel_filterbank(resample(mono, rate), sizes.mel_bins)
        if len(features) == 0:
            raise MediaError("too_short", f"{samples.shape[1] / rate * 1000:.1f} ms of sound, 25 ms are needed")
        return cut(normalise(features), self.slice_count, sizes.slice_frames)

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "b width"]:
        """Mean over the tokens of a slice, then over the slices of each item."""
        means = self.pieces.run(lambda slices: self._tokens(slices).float().mean(dim=1), Runs(batch))
        return mean_of_runs(means, [len(item) for item in batch])

    def tokens(self, batch: Sequence[np.ndarray]) -> list[Float32[np.ndarray, "slices tokens width"]]:
        """All tokens of every slice of each item, for the matching head."""
        every = self.pieces.run(self._tokens, Runs(batch))
        return np.split(every, np.cumsum([len(item) for item in batch])[:-1])

    def _tokens(self, slices: Tensor) -> Tensor:
        with self.autocast():
            return self.model(slices)
