"""What encoders of ImageBind and LanguageBind have in common: weights read when first needed, fingerprints, means over views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float32

from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known
from feature_extractors.encoders._clip_tokens import ClipTokens
from feature_extractors.encoders._released_weights import Names, ReleasedWeights
from feature_extractors.encoders._transformers import unit
from feature_extractors.encoders.vast.batching import PRECISIONS, Pieces, Runs, autocast, place
from feature_extractors.encoders.vast.preprocessing import sources
from feature_extractors.fingerprints import fingerprint
from feature_extractors.protocols import AbsentError, Medium

if TYPE_CHECKING:
    from torch import nn

# Texts are padded to the next multiple of this, whatever else is in their batch, so a text's feature is its own.
_BUCKET = 8


class JointEncoder:
    """A tower into the space that all modalities of its system share; unit-norm rows.

    The temperatures by which released models multiply some modalities are left out: they change no cosine. Making an encoder reads nothing, so
    that workers that prepare media can hold one; the tower is loaded by the first `encode` and left behind when an encoder is pickled.
    """

    system: ClassVar[str]
    part: ClassVar[str]
    revision: ClassVar[int] = 1
    rows: ClassVar[int] = 32

    def __init__(
        self, device: str = "cpu", weights: Path | None = None, precision: str = "fp32", batch_rows: int | None = None
    ) -> None:
        known(precision, tuple(PRECISIONS), "unknown precision")
        self.device, self.precision = device, precision
        self.given = Path(weights) if weights is not None else None
        self.pieces = Pieces.of(batch_rows, self.rows, device)

    def tower(self) -> tuple[nn.Module, Names]:
        """The tower on the meta device, and the released names of its parameters."""
        raise NotImplementedError

    def read(self) -> ReleasedWeights:
        """The checkpoint."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Every setting that changes the features, as JSON values."""
        raise NotImplementedError

    def prepare(self, medium: Medium) -> np.ndarray:
        """What `encode` takes, from one medium. Raises MediaError or AbsentError."""
        raise NotImplementedError

    @property
    def dimension(self) -> int:
        tower, _ = self.tower()
        return int(tower.state_dict()["projection.weight"].shape[0])

    @cached_property
    def checkpoint(self) -> ReleasedWeights:
        import torch

        with torch.inference_mode(False):
            return self.read()

    @cached_property
    def model(self) -> nn.Module:
        import torch

        with torch.inference_mode(False):
            tower, names = self.tower()
            return place(self.checkpoint.fill(tower, names, f"{self.system}'s {self.part}"), self.device, self.precision)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the tower's weights, every setting and the revision of this code."""
        tower, names = self.tower()
        if found := self.checkpoint.problems(tower, names):
            raise CalmrlError(
                f"'{self.checkpoint.path}' does not hold {self.system}'s {self.part} as it was released: {'; '.join(found)}",
                hint=f"calmrl-lab weights check {self.checkpoint.path.parent}",
            )
        settings = {"encoder": f"{self.system}/{self.part}", "revision": self.revision, "precision": self.precision}
        return fingerprint({self.part: self.checkpoint.digest(names)}, settings | self.settings())

    def heads(self) -> Mapping[str, np.ndarray]:
        """None: what is stored is the joint embedding itself."""
        return {}

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "b d"]:
        """The mean of the unit-norm embeddings of the views of each item, scaled to unit norm."""
        rows = self.pieces.run(self._embeddings, Runs(batch))
        ends = np.cumsum([len(item) for item in batch])
        return unit(np.stack([rows[end - len(item) : end].mean(axis=0) for end, item in zip(ends, batch, strict=True)]))

    def _embeddings(self, rows: Any) -> Any:
        with autocast(self.device, self.precision):
            return self.model(rows)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("model", "checkpoint", "tokens")}


class JointText(JointEncoder):
    """Texts of at most 77 words of CLIP's vocabulary; texts of one padded length go through the tower together."""

    rows = 128

    @cached_property
    def tokens(self) -> ClipTokens:
        """The system's tokenizer."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        return {"length": self.tokens.length, "vocabulary": self.tokens.digest, "html": self.tokens.unescape}

    def prepare(self, medium: Medium) -> np.ndarray:
        """Numbers of words. A text of white space is absent, never a vector."""
        text = sources.text(medium)
        if not text.strip():
            raise AbsentError("the text is empty")
        return self.tokens(text)

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "b d"]:
        padded = np.array([min(-(-len(ids) // _BUCKET) * _BUCKET, self.tokens.length) for ids in batch])
        rows = np.empty((len(batch), self.dimension), np.float32)
        for length in np.unique(padded):
            members = np.flatnonzero(padded == length)
            # Padding stands behind the end of a text, which a causal tower never sees.
            ids = np.zeros((len(members), length), np.int64)
            for row, member in zip(ids, members, strict=True):
                row[: len(batch[int(member)])] = batch[int(member)]
            rows[members] = self.pieces.run(self._embeddings, ids)
        return unit(rows)
