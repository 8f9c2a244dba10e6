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
from feature_extractors.encoders.vast.preprocessing.fbank import (
    RATE,
    chosen_frames,
    frame_count,
    frame_samples,
    mel_filterbank,
    normalise,
)
from feature_extractors.encoders.vast.preprocessing.resample import resample_span, resampled_length, source_span
from feature_extractors.media.decode import spans_of
from feature_extractors.media.sound import Hearing
from feature_extractors.protocols import MediaError, Medium

if TYPE_CHECKING:
    from torch import Tensor, nn


# The script that VAST, GRAM and PMRL extract sound from videos with: ffmpeg -ac 1 -ar 22050.
TRACK_RATE = 22_050


class AudioEncoder(VastEncoder):
    """BEATs on 64 mel bins: tokens of `slices` slices of 10.24 s, averaged.

    `channel` is `first` (PMRL and VAST: the first channel after resampling) or `mean` (GRAM: mono before resampling). The sound track of a video
    is first mixed to one channel at 22,050 Hz, as their script does it. An MP3 file is heard with LAME's lead-in where `lead_in` is set: torchaudio, with
    which VAST and PMRL read files, decodes with libmad; librosa, with which GRAM does, knows about it.
    """

    part = "audio"
    modality = "audio"
    rows = 32
    slices: ClassVar[int] = 1
    channel: ClassVar[str] = "first"
    lead_in: ClassVar[bool] = True

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
        return {
            "slices": self.slice_count,
            "channel": self.channel_rule,
            "resampling": "sinc-hann-6",
            "filterbank": "kaldi-64",
            "video track": f"mono {TRACK_RATE} Hz 16 bit",
            "mp3 lead-in": self.lead_in,
        }

    def build(self, weights: Mapping[str, Tensor]) -> nn.Module:
        from feature_extractors.encoders.vast.networks import beats

        return beats.load(weights, self.architecture.audio)

    def prepare(self, medium: Medium) -> Float32[np.ndarray, "slices frames mel"]:
        """Normalised filterbank slices. Raises MediaError `too_short` for less than one frame of 25 ms."""
        sizes = self.architecture.audio
        frames: list[tuple[int, int]] = []

        def choose(length: int, rate: int) -> list[tuple[int, int]]:
            count = frame_count(resampled_length(length, rate, RATE))
            if count == 0:
                raise MediaError("too_short", f"{length / rate * 1000:.1f} ms of sound, 25 ms are needed")
            frames[:] = chosen_frames(count, self.slice_count, sizes.slice_frames)
            return [source_span(*frame_samples(*span), rate, RATE) if span[1] > span[0] else (0, 0) for span in frames]

        heard, rate = spans_of(medium, choose, Hearing(TRACK_RATE, self.lead_in))
        slices = np.zeros((len(frames), sizes.slice_frames, sizes.mel_bins), np.float32)
        for made, samples, (start, stop) in zip(slices, heard, frames, strict=True):
            if stop > start:
                mono = samples.mean(axis=0) if self.channel_rule == "mean" else samples[0]
                resampled = resample_span(mono, *frame_samples(start, stop), rate, RATE)
                made[: stop - start] = normalise(mel_filterbank(resampled, sizes.mel_bins))
        return slices

    def stand_in(self) -> Float32[np.ndarray, "slices frames mel"]:
        """What the released evaluation encodes where there is no sound: slices of zeros, the mean of normalised filterbanks."""
        sizes = self.architecture.audio
        return np.zeros((self.slice_count, sizes.slice_frames, sizes.mel_bins), np.float32)

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
