"""Sentence-transformers text models, read by transformers alone."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders import encoders
from feature_extractors.encoders._transformers import TextTower


@encoders.register("sentence/text")
class SentenceText(TextTower):
    """A sentence-transformers model on texts (default sentence-transformers/all-MiniLM-L6-v2, or --weights DIR/sentence)

    Pooling follows the folder's `1_Pooling/config.json` (mean or class token); without one it is the mean over the tokens.
    """

    kind, default = "sentence", "sentence-transformers/all-MiniLM-L6-v2"
    model_types = ("bert", "distilbert", "roberta", "xlm-roberta", "mpnet", "modernbert", "albert", "electra", "camembert")

    @property
    def dimension(self) -> int:
        return int(getattr(self.config, "hidden_size", 0) or self.config.dim)

    @property
    def max_length(self) -> int:
        limit = int(self.config.max_position_embeddings)
        # RoBERTa and its kin count positions from the padding token on.
        usable = limit - 2 if self.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else limit
        return min(self._file("sentence_bert_config.json").get("max_seq_length", 256), usable)

    @cached_property
    def pooling(self) -> str:
        modes = self._file("1_Pooling/config.json")
        if modes.get("pooling_mode_cls_token"):
            return "cls"
        if modes and not modes.get("pooling_mode_mean_tokens", False):
            raise CalmrlError(
                f"'{self.source}' pools in a way that is not known here",
                hint="models that take the mean or the class token work",
            )
        return "mean"

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "pooling": self.pooling}

    def _file(self, name: str) -> dict[str, Any]:
        """A small settings file of the model, from its folder or the hub's cache; empty if it has none."""
        path = Path(self.source) / name
        if not Path(self.source).is_dir():
            from transformers.utils import cached_file

            found = cached_file(
                self.source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
            )
            path = Path(found) if found else path
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _features(self, ids: Any, observed: Any) -> Any:
        with self.autocast():
            hidden = self.model(input_ids=ids, attention_mask=observed).last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        weight = observed.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)
