"""Captions and subtitles to features: bert-base-uncased, its class token."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float32

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders.vast.encoder import VastEncoder
from feature_extractors.encoders.vast.preprocessing import sources
from feature_extractors.encoders.vast.weights_folder import find_vocabulary
from feature_extractors.protocols import AbsentError, Medium

if TYPE_CHECKING:
    from torch import Tensor, nn

# Texts are padded to the next multiple of this, whatever else is in their batch, so a text's feature is its own.
_BUCKET = 8


class TextEncoder(VastEncoder):
    """bert-base-uncased: the class token of a text cut to `length` tokens. One BERT serves captions and subtitles."""

    part = "text"
    modality = "caption"
    rows = 256
    length: ClassVar[int] = 40

    def __init__(
        self,
        device: str = "cpu",
        weights: Path | None = None,
        length: int | None = None,
        precision: str = "fp32",
        batch_rows: int | None = None,
    ) -> None:
        super().__init__(device, weights, precision, batch_rows)
        self.max_length = length or self.length

    def settings(self) -> dict[str, Any]:
        _ = self.tokenizer  # a vocabulary that does not fit is an error now, not in the middle of an extraction
        words = "\n".join(self.vocabulary).encode()
        return {"length": self.max_length, "vocabulary": hashlib.sha256(words).hexdigest()}

    def build(self, weights: Mapping[str, Tensor]) -> nn.Module:
        from feature_extractors.encoders.vast.networks import bert

        return bert.load(weights, self.architecture.text)

    @cached_property
    def vocabulary(self) -> list[str]:
        from feature_extractors.encoders.vast.networks import bert

        return bert.read_vocabulary(find_vocabulary(self.weights), self.architecture.text.vocabulary)

    @cached_property
    def tokenizer(self) -> Any:
        from feature_extractors.encoders.vast.networks import bert

        if not 3 <= self.max_length <= self.architecture.text.positions:
            raise CalmrlError(
                f"text length {self.max_length} is out of range", hint=f"3 to {self.architecture.text.positions} tokens"
            )
        return bert.tokenizer(self.vocabulary, self.max_length)

    def prepare(self, medium: Medium) -> np.ndarray:
        """Token ids [length] with [CLS] and [SEP]. A text of white space is absent, never a vector."""
        text = sources.text(medium)
        if not text.strip():
            raise AbsentError("the text is empty")
        return np.array(self.tokenizer.encode(text).ids, dtype=np.int64)

    def stand_in(self) -> np.ndarray:
        """What the released evaluation encodes where there is no subtitle: [CLS] and [SEP]."""
        return np.array(self.tokenizer.encode("").ids, dtype=np.int64)

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "b width"]:
        """Class tokens; texts of one padded length go through the model together."""
        features = np.empty((len(batch), self.dimension), np.float32)
        for members, ids, observed in self._buckets(batch):
            features[members] = self.pieces.run(lambda i, o: self._tokens(i, o)[:, 0], ids, observed)
        return features

    def tokens(self, batch: Sequence[np.ndarray]) -> list[Float32[np.ndarray, "length width"]]:
        """All `length` tokens of each text, padding included: VAST's matching attends to the padding of subtitles."""
        from feature_extractors.encoders.vast.networks import bert

        ids, observed = bert.pad(list(batch), self.max_length, self._padding)
        return list(self.pieces.run(self._tokens, ids, observed))

    @cached_property
    def _padding(self) -> int:
        return int(self.tokenizer.token_to_id("[PAD]"))

    def _buckets(self, batch: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        from feature_extractors.encoders.vast.networks import bert

        padded = np.array([min(-(-len(ids) // _BUCKET) * _BUCKET, self.max_length) for ids in batch])
        groups = [(np.flatnonzero(padded == length), int(length)) for length in np.unique(padded)]
        return [(members, *bert.pad([batch[int(i)] for i in members], length, self._padding)) for members, length in groups]

    def _tokens(self, ids: Tensor, observed: Tensor) -> Tensor:
        from feature_extractors.encoders.vast.networks import bert

        with self.autocast():
            return bert.tokens(self.model, ids, observed)
