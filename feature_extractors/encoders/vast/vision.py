"""Frames to features: EVA01-CLIP-g/14, class tokens averaged over the frames."""

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
from feature_extractors.encoders.vast.preprocessing.pixels import MODES, transform
from feature_extractors.protocols import Medium

if TYPE_CHECKING:
    from torch import Tensor, nn


class VisionEncoder(VastEncoder):
    """EVA01-CLIP-g/14: class tokens of `frames` frames, averaged.

    `resize` is `squash` or `crop`; `short_clips` says what a clip of fewer frames gets: `repeat` its last one, or `reject` (as GRAM).
    """

    part = "vision"
    modality = "vision"
    rows = 64
    frames: ClassVar[int] = 8
    resize: ClassVar[str] = "squash"
    short_clips: ClassVar[str] = "repeat"

    def __init__(
        self,
        device: str = "cpu",
        weights: Path | None = None,
        frames: int | None = None,
        resize: str | None = None,
        short_clips: str | None = None,
        precision: str = "fp32",
        batch_rows: int | None = None,
    ) -> None:
        super().__init__(device, weights, precision, batch_rows)
        self.frame_count = frames or self.frames
        self.mode = resize or self.resize
        self.short = short_clips or self.short_clips
        for given, known in ((self.mode, MODES), (self.short, ("repeat", "reject"))):
            if given not in known:
                raise CalmrlError(f"unknown setting '{given}' of VAST's vision encoder", hint=f"known: {', '.join(known)}")

    def settings(self) -> dict[str, Any]:
        return {
            "frames": self.frame_count,
            "choice": "lower middle",
            "resize": self.mode,
            "antialias": False,
            "short_clips": self.short,
        }

    def build(self, weights: Mapping[str, Tensor]) -> nn.Module:
        from feature_extractors.encoders.vast.networks import eva

        return eva.load(weights, self.architecture.vision)

    def prepare(self, medium: Medium) -> Float32[np.ndarray, "frames 3 side side"]:
        """Chosen frames, resized and normalised. An image is one frame."""
        frames = sources.frames(medium, self.frame_count, reject_short=self.short == "reject")
        return transform(frames, self.mode, self.architecture.vision.resolution)

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "b width"]:
        """Mean class token of each item; the frames of all items go through the model together."""
        classes = self.pieces.run(lambda pixels: self._tokens(pixels)[:, 0], Runs(batch))
        return mean_of_runs(classes, [len(item) for item in batch])

    def tokens(self, batch: Sequence[np.ndarray]) -> list[Float32[np.ndarray, "frames tokens width"]]:
        """All tokens of every frame of each item, for the matching head."""
        every = self.pieces.run(self._tokens, Runs(batch))
        return np.split(every, np.cumsum([len(item) for item in batch])[:-1])

    def _tokens(self, pixels: Tensor) -> Tensor:
        from feature_extractors.encoders.vast.networks import eva

        with self.autocast():
            return eva.tokens(self.model, pixels)
