"""Open encoders through transformers: a local folder or the model hub, one embedding a medium, unit norm."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32

from calmrl_lab.errors import CalmrlError, missing_extra
from calmrl_lab.registry import known
from feature_extractors.encoders.vast.batching import PRECISIONS, Pieces, Runs, autocast, place
from feature_extractors.encoders.vast.preprocessing import sources
from feature_extractors.fingerprints import fingerprint
from feature_extractors.protocols import AbsentError, Medium

# Raised whenever a change here changes the features of unchanged weights and settings; part of every fingerprint.
REVISION = 3
_BUCKET = 8


def locate(kind: str, default: str, weights: Path | None, model: str | None) -> str:
    """What `from_pretrained` gets: `model` if given, else the folder of `kind` in `weights`, else the hub id `default`.

    A folder of `kind` is `weights` itself if it holds a config.json, or `weights/<kind>`. Raises CalmrlError if neither does.
    """
    if model is not None:
        return model
    if weights is None:
        return default
    for folder in (Path(weights), Path(weights) / kind):
        if (folder / "config.json").is_file():
            return str(folder)
    raise CalmrlError(
        f"no {kind} model in '{weights}' (looked for config.json there and in {kind}/)",
        hint=f"download {default} with `hf download {default} --local-dir {weights}/{kind}`",
    )


def from_pretrained(loader: Any, source: str, **options: Any) -> Any:
    """`loader.from_pretrained`, its failures as one sentence. Code from a model repository is never run."""
    try:
        return loader.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CalmrlError(
            f"'{source}' cannot be loaded as {loader.__name__}: {reason}",
            hint="give a complete local folder with --weights DIR, or go online once so that the hub's cache is filled",
        ) from None


class OpenEncoder:
    """What the open encoders have in common: model found, loaded when first needed, digest, batches.

    `weights` is the folder given with --weights, `model` a folder or hub id that overrides it.
    """

    kind: ClassVar[str]
    default: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    rows: ClassVar[int] = 64

    def __init__(
        self,
        device: str = "cpu",
        weights: Path | None = None,
        model: str | None = None,
        precision: str = "fp32",
        batch_rows: int | None = None,
    ) -> None:
        known(precision, tuple(PRECISIONS), "unknown precision")
        self.device = device
        self.precision = precision
        self.pieces = Pieces.of(batch_rows, self.rows, device)
        self._given = (Path(weights) if weights is not None else None, model)

    @cached_property
    def source(self) -> str:
        """The folder or hub id; looked for when it is needed, so that errors about the dataset come first."""
        return locate(self.kind, self.default, *self._given)

    @cached_property
    def transformers(self) -> Any:
        try:
            import transformers
        except ImportError:
            raise missing_extra("transformers", "vast", f"the encoder '{self.kind}'") from None
        return transformers

    @cached_property
    def config(self) -> Any:
        found = from_pretrained(self.transformers.AutoConfig, self.source)
        if found.model_type not in self.model_types:
            raise CalmrlError(
                f"'{self.source}' is a {found.model_type} model, expected: {', '.join(self.model_types)}",
                hint=f"for example {self.default}",
            )
        return found

    @cached_property
    def model(self) -> Any:
        _ = self.config  # a model of another type is refused before its weights are read
        model = (
            from_pretrained(self.transformers.AutoModel, self.source, dtype="float32", use_safetensors=None)
            .eval()
            .requires_grad_(False)
        )
        self._digest = _digest(model.state_dict())
        return place(model, self.device, self.precision)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the weights, the model's configuration, every setting and the revision of this code."""
        _ = self.model
        configuration = {
            k: v for k, v in self.config.to_dict().items() if k not in ("transformers_version", "_name_or_path", "dtype")
        }
        settings = {
            "kind": self.kind,
            "revision": REVISION,
            "precision": self.precision,
            "configuration": configuration,
            **self.settings(),
        }
        return fingerprint({self.kind: self._digest}, settings)

    def settings(self) -> dict[str, Any]:
        """Every setting of preprocessing that changes the features, as JSON values."""
        raise NotImplementedError

    def heads(self) -> Mapping[str, np.ndarray]:
        """None: what is stored is the model's own joint embedding."""
        return {}

    def autocast(self) -> Any:
        return autocast(self.device, self.precision)

    def __getstate__(self) -> dict[str, Any]:
        # The module object and the model stay behind; a decoding worker needs neither.
        return {key: value for key, value in self.__dict__.items() if key not in ("model", "transformers")}


class ImageEncoder(OpenEncoder):
    """Frames of a video (or an image) to the mean of their unit embeddings, renormalised."""

    frames: ClassVar[int] = 8

    def __init__(
        self,
        device: str = "cpu",
        weights: Path | None = None,
        model: str | None = None,
        frames: int | None = None,
        precision: str = "fp32",
        batch_rows: int | None = None,
    ) -> None:
        super().__init__(device, weights, model, precision, batch_rows)
        self.frame_count = frames or self.frames

    @cached_property
    def processor(self) -> Any:
        # The Pillow backend: the other one needs torchvision.
        return from_pretrained(self.transformers.AutoImageProcessor, self.source, backend="pil")

    def settings(self) -> dict[str, Any]:
        return {"frames": self.frame_count, "choice": "lower middle", "pixels": _plain(self.processor.to_dict())}

    def prepare(self, medium: Medium) -> Float32[np.ndarray, "frames 3 height width"]:
        """The frames as the model's own processor makes them."""
        frames = sources.frames(medium, self.frame_count)
        made = self.processor(images=list(frames), return_tensors="np", input_data_format="channels_last")
        return np.asarray(made["pixel_values"], dtype=np.float32)

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "b d"]:
        rows = unit(self.pieces.run(self._features, Runs(batch)))
        ends = np.cumsum([len(item) for item in batch])
        return unit(np.stack([rows[end - len(item) : end].mean(axis=0) for end, item in zip(ends, batch, strict=True)]))

    def _features(self, pixels: Any) -> Any:
        with self.autocast():
            return self.model.get_image_features(pixel_values=pixels).pooler_output


class TextTower(OpenEncoder):
    """Texts to unit embeddings; texts of one padded length go through the model together."""

    length: ClassVar[int]
    fixed_length: ClassVar[bool] = False
    rows = 256

    @cached_property
    def tokenizer(self) -> Any:
        return from_pretrained(self.transformers.AutoTokenizer, self.source)

    @property
    def max_length(self) -> int:
        return self.length

    def settings(self) -> dict[str, Any]:
        return {
            "length": self.max_length,
            "vocabulary": hashlib.sha256(repr(sorted(self.tokenizer.get_vocab().items())).encode()).hexdigest(),
        }

    def prepare(self, medium: Medium) -> np.ndarray:
        """Token ids. A text of white space is absent, never a vector."""
        text = sources.text(medium)
        if not text.strip():
            raise AbsentError("the text is empty")
        return np.array(self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"], dtype=np.int64)

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "b d"]:
        step = self.max_length if self.fixed_length else _BUCKET
        padded = np.array([min(-(-len(ids) // step) * step, self.max_length) for ids in batch])
        parts: dict[int, np.ndarray] = {}
        for length in np.unique(padded):
            members = np.flatnonzero(padded == length)
            ids = np.full((len(members), length), self.tokenizer.pad_token_id, np.int64)
            observed = np.zeros((len(members), length), np.int64)
            for row, member in enumerate(members):
                tokens = batch[int(member)]
                ids[row, : len(tokens)], observed[row, : len(tokens)] = tokens, 1
            parts |= dict(zip(members.tolist(), self.pieces.run(self._features, ids, observed), strict=True))
        return unit(np.stack([parts[i] for i in range(len(batch))]))

    def _features(self, ids: Any, observed: Any) -> Any:
        with self.autocast():
            return self.model.get_text_features(input_ids=ids, attention_mask=observed).pooler_output


def unit(rows: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Rows scaled to unit norm; zero rows stay zero."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value if isinstance(value, int | float | str | bool | None) else repr(value)
        for key, value in sorted(settings.items())
    }


def _digest(state: Mapping[str, Any]) -> str:
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
