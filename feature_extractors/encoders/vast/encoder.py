"""The three frozen encoders of VAST behind the Encoder protocol: frames, sound and text to pooled features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float32

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders.vast import sources
from feature_extractors.encoders.vast.architecture import Architecture, read_architecture
from feature_extractors.encoders.vast.batching import PRECISIONS, Pieces, autocast, place
from feature_extractors.encoders.vast.checkpoint import LAYOUT, Checkpoint, find_vocabulary, load_checkpoint, root_of
from feature_extractors.encoders.vast.fbank import cut, mel_filterbank, normalise
from feature_extractors.encoders.vast.heads import own_heads
from feature_extractors.encoders.vast.pixels import MODES, transform
from feature_extractors.encoders.vast.resample import resample
from feature_extractors.fingerprints import file_digest, fingerprint
from feature_extractors.protocols import AbsentError, MediaError, Medium

if TYPE_CHECKING:
    from torch import Tensor, nn

# Raised whenever a change here changes the features of unchanged weights and settings; part of every fingerprint.
REVISION = 1
# Texts are padded to the next multiple of this, whatever else is in their batch, so a text's feature is its own.
_BUCKET = 8


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
        if precision not in PRECISIONS:
            raise CalmrlError(f"unknown precision '{precision}'", hint=f"known: {', '.join(PRECISIONS)}")
        self.device = device
        self.given = Path(weights) if weights is not None else None
        self.precision = precision
        self.pieces = Pieces(batch_rows or self.rows, device)

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
        return read_architecture(root_of(self.weights))

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
        return load_checkpoint(self.weights)

    @cached_property
    def model(self) -> nn.Module:
        return place(self.build(self.checkpoint.part(self.part)), self.device, self.precision)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over this part's weights, its sizes, every setting and the revision of this code."""
        settings = {"encoder": self.part, "revision": REVISION, "precision": self.precision, **self.settings()}
        settings["sizes"] = self.architecture.as_json()[self.part]
        return fingerprint({self.part: self.checkpoint.digest([self.part])}, settings)

    def heads(self) -> dict[str, np.ndarray]:
        """The projection weights of this modality, as released: `contra_head_v|a|t|s` [512, dimension], and the joint heads."""
        return own_heads({k: v.float().numpy() for k, v in self.checkpoint.part("heads").items()}, self.modality)

    def autocast(self) -> Any:
        return autocast(self.device, self.precision)

    def __getstate__(self) -> dict[str, Any]:
        kept = dict(self.__dict__)
        for heavy in ("model", "checkpoint"):
            kept.pop(heavy, None)
        return kept


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
        from feature_extractors.encoders.vast import eva

        return eva.load(weights, self.architecture.vision)

    def prepare(self, medium: Medium) -> Float32[np.ndarray, "frames 3 side side"]:
        """Chosen frames, resized and normalised. An image is one frame."""
        frames = sources.frames(medium, self.frame_count, reject_short=self.short == "reject")
        return transform(frames, self.mode, self.architecture.vision.resolution)

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "b width"]:
        """Mean class token of each item; the frames of all items go through the model together."""
        classes = self.pieces.run(lambda pixels: self._tokens(pixels)[:, 0], np.concatenate(batch))
        return _means(classes, [len(item) for item in batch])

    def tokens(self, batch: Sequence[np.ndarray]) -> list[Float32[np.ndarray, "frames tokens width"]]:
        """All tokens of every frame of each item, for the matching head."""
        every = self.pieces.run(self._tokens, np.concatenate(batch))
        return np.split(every, np.cumsum([len(item) for item in batch])[:-1])

    def _tokens(self, pixels: Tensor) -> Tensor:
        from feature_extractors.encoders.vast import eva

        with self.autocast():
            return eva.tokens(self.model, pixels)


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
        from feature_extractors.encoders.vast import beats

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
        means = self.pieces.run(lambda slices: self._tokens(slices).float().mean(dim=1), np.concatenate(batch))
        return _means(means, [len(item) for item in batch])

    def tokens(self, batch: Sequence[np.ndarray]) -> list[Float32[np.ndarray, "slices tokens width"]]:
        """All tokens of every slice of each item, for the matching head."""
        every = self.pieces.run(self._tokens, np.concatenate(batch))
        return np.split(every, np.cumsum([len(item) for item in batch])[:-1])

    def _tokens(self, slices: Tensor) -> Tensor:
        with self.autocast():
            return self.model(slices)


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
        return {"length": self.max_length, "vocabulary": file_digest(self.vocabulary)}

    def build(self, weights: Mapping[str, Tensor]) -> nn.Module:
        from feature_extractors.encoders.vast import bert

        return bert.load(weights, self.architecture.text)

    @cached_property
    def vocabulary(self) -> Path:
        return find_vocabulary(self.weights)

    @cached_property
    def tokenizer(self) -> Any:
        from feature_extractors.encoders.vast import bert

        if not 3 <= self.max_length <= self.architecture.text.positions:
            raise CalmrlError(
                f"text length {self.max_length} is out of range", hint=f"3 to {self.architecture.text.positions} tokens"
            )
        made = bert.tokenizer(self.vocabulary, self.max_length)
        if made.get_vocab_size() > self.architecture.text.vocabulary:
            raise CalmrlError(
                f"the vocabulary '{self.vocabulary}' has {made.get_vocab_size()} entries, the weights have {self.architecture.text.vocabulary}",
                hint="use vocab.txt of bert-base-uncased",
            )
        return made

    def prepare(self, medium: Medium) -> np.ndarray:
        """Token ids [length] with [CLS] and [SEP]. A text of white space is absent, never a vector."""
        text = sources.text(medium)
        if not text.strip():
            raise AbsentError("the text is empty")
        return np.array(self.tokenizer.encode(text).ids, dtype=np.int64)

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "b width"]:
        """Class tokens; texts of one padded length go through the model together."""
        features = np.empty((len(batch), self.dimension), np.float32)
        for members, ids, observed in self._buckets(batch):
            features[members] = self.pieces.run(lambda i, o: self._tokens(i, o)[:, 0], ids, observed)
        return features

    def tokens(self, batch: Sequence[np.ndarray]) -> list[Float32[np.ndarray, "length width"]]:
        """All `length` tokens of each text, padding included: VAST's matching attends to the padding of subtitles."""
        from feature_extractors.encoders.vast import bert

        ids, observed = bert.pad(list(batch), self.max_length, self._padding)
        return list(self.pieces.run(self._tokens, ids, observed))

    @cached_property
    def _padding(self) -> int:
        return int(self.tokenizer.token_to_id("[PAD]"))

    def _buckets(self, batch: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        from feature_extractors.encoders.vast import bert

        padded = np.array([min(-(-len(ids) // _BUCKET) * _BUCKET, self.max_length) for ids in batch])
        groups = [(np.flatnonzero(padded == length), int(length)) for length in np.unique(padded)]
        return [(members, *bert.pad([batch[int(i)] for i in members], length, self._padding)) for members, length in groups]

    def _tokens(self, ids: Tensor, observed: Tensor) -> Tensor:
        from feature_extractors.encoders.vast import bert

        with self.autocast():
            return bert.tokens(self.model, ids, observed)


def _means(rows: Float32[np.ndarray, "r d"], counts: list[int]) -> Float32[np.ndarray, "b d"]:
    """The mean of each run of `counts` rows, summed in float64."""
    ends = np.cumsum(counts)
    return np.stack(
        [rows[end - count : end].mean(axis=0, dtype=np.float64) for end, count in zip(ends, counts, strict=True)]
    ).astype(np.float32)
