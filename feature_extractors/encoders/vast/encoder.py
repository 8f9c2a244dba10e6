"""What VAST's three encoders have in common: weights read when first needed, fingerprints, heads, what travels to workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float32

from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known
from feature_extractors.encoders.vast.batching import PRECISIONS, Pieces, autocast, place
from feature_extractors.encoders.vast.checkpoint import Checkpoint, load_checkpoint
from feature_extractors.encoders.vast.networks.architecture import Architecture
from feature_extractors.encoders.vast.networks.heads import own_heads
from feature_extractors.encoders.vast.weights_folder import LAYOUT, sizes_of
from feature_extractors.fingerprints import fingerprint
from feature_extractors.protocols import Medium

if TYPE_CHECKING:
    from torch import Tensor, nn

# Raised whenever a change here changes the features of unchanged weights and settings; part of every fingerprint.
REVISION = 3


class VastEncoder:
    """What the three have in common: weights read when first needed, the fingerprint, the heads.

    `weights` is the folder (or file) given with --weights. Making an encoder reads nothing, so that decoding workers can hold one:
    the model is loaded by the first `encode`, and is left behind when an encoder is pickled.
    """

    part: ClassVar[str]
    modality: ClassVar[str]
    rows: ClassVar[int]

    def __init__(
        self, device: str = "cpu", weights: Path | None = None, precision: str = "fp32", batch_rows: int | None = None
    ) -> None:
        known(precision, tuple(PRECISIONS), "unknown precision")
        self.device = device
        self.given = Path(weights) if weights is not None else None
        self.precision = precision
        self.pieces = Pieces.of(batch_rows, self.rows, device)

    @cached_property
    def weights(self) -> Path:
        """The weights folder, asked for when something of it is needed, so that errors about the dataset come first."""
        if self.given is None:
            raise CalmrlError("VAST's encoders need the released weights", hint=f"--weights DIR; {LAYOUT}")
        if not self.given.exists():
            raise CalmrlError(f"the weights folder '{self.given}' does not exist", hint=LAYOUT)
        return self.given

    @cached_property
    def architecture(self) -> Architecture:
        return sizes_of(self.weights)

    def settings(self) -> dict[str, Any]:
        """Every setting that changes the features, as JSON values."""
        raise NotImplementedError

    def build(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """The model with this part of the checkpoint."""
        raise NotImplementedError

    def prepare(self, medium: Medium) -> np.ndarray:
        """What `encode` takes, from one medium. Raises MediaError or AbsentError."""
        raise NotImplementedError

    def tokens(self, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        """All tokens of each item before pooling, for the matching head."""
        raise NotImplementedError

    @property
    def dimension(self) -> int:
        return int(getattr(self.architecture, self.part).width)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        import torch

        # Asked for first inside `encode`, tensors would be marked as good for inference only, and no other model could be built of them.
        with torch.inference_mode(False):
            return load_checkpoint(self.weights)

    @cached_property
    def model(self) -> nn.Module:
        import torch

        with torch.inference_mode(False):
            return place(self.build(self.checkpoint.part(self.part)), self.device, self.precision)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over this part's weights, its sizes, every setting and the revision of this code."""
        settings = {"encoder": self.part, "revision": REVISION, "precision": self.precision, **self.settings()}
        settings["sizes"] = self.architecture.as_json()[self.part]
        return fingerprint({self.part: self.checkpoint.digest([self.part])}, settings)

    def heads(self) -> dict[str, np.ndarray]:
        """The projection weights of this modality, as released: `contra_head_v|a|t|s` [512, dimension], and the joint heads."""
        return own_heads({k: v.numpy() for k, v in self.checkpoint.part("heads").items()}, self.modality)

    def autocast(self) -> Any:
        return autocast(self.device, self.precision)

    def __getstate__(self) -> dict[str, Any]:
        kept = dict(self.__dict__)
        for heavy in ("model", "checkpoint"):
            kept.pop(heavy, None)
        return kept


def mean_of_runs(rows: Float32[np.ndarray, "r d"], counts: list[int]) -> Float32[np.ndarray, "b d"]:
    """The mean of each run of `counts` rows, summed in float64."""
    ends = np.cumsum(counts)
    return np.stack(
        [rows[end - count : end].mean(axis=0, dtype=np.float64) for end, count in zip(ends, counts, strict=True)]
    ).astype(np.float32)
