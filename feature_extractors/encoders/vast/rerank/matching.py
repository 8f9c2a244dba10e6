"""VAST's matching head: how well a caption fits a clip, read by a BERT that attends to the clip's tokens; and the re-rank by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders.vast.batching import Pieces, autocast, place

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from feature_extractors.encoders.vast.checkpoint import Checkpoint

Cached = list[tuple["Tensor", "Tensor"]]
TOP = 50  # candidates re-scored for a query in the released configurations
_CAPTIONS = 64  # captions that meet one clip at once
_BUCKET = 8


class Matcher:
    """Scores (caption, clip) pairs: P(match) in [0, 1].

    A clip is given by its condition tokens [T, 768] (`condition`), whose keys and values are computed once per clip (about 90 % of
    the work of a pair at T = 2382) and then shared by all captions that meet it.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", precision: str = "fp32") -> None:
        import torch

        from feature_extractors.encoders.vast.networks import bert

        self.device, self.precision = device, precision
        self.heads_count = checkpoint.architecture.text.heads
        self.width = checkpoint.architecture.text.width
        with torch.inference_mode(False):
            weights = bert.load(checkpoint.part("text"), checkpoint.architecture.text, cross_attention=True)
            self.bert: Any = place(weights, device, precision)
            self.weights = {name: tensor.to(device) for name, tensor in checkpoint.part("heads").items()}
        self.pieces = Pieces(_CAPTIONS, device)

    def condition(
        self,
        vision: Float32[np.ndarray, "frames tokens width"] | None = None,
        audio: Float32[np.ndarray, "slices tokens width"] | None = None,
        subtitle: Float32[np.ndarray, "tokens width"] | None = None,
    ) -> Float32[np.ndarray, "T 768"]:
        """The tokens a caption attends to: each modality projected, marked with its frame and its kind, in the order v, a, s.

        A modality that an item lacks contributes no tokens; the released code would put the tokens of silence or of an empty text.
        Raises CalmrlError if there is no modality at all.
        """
        import torch

        parts = []
        for name, tokens in (("vision", vision), ("audio", audio), ("subtitle", subtitle)):
            if tokens is None:
                continue
            with torch.inference_mode():
                marked = self._project(name, torch.from_numpy(np.asarray(tokens, dtype=np.float32)).to(self.device))
                if name != "subtitle":
                    marked = marked + self._frames(name, len(marked)).unsqueeze(1)
                parts.append((marked.reshape(-1, self.width) + self.weights[f"{name}_type_embeddings"][0]).cpu())
        if not parts:
            raise CalmrlError("matching needs at least one of vision, audio and subtitle")
        return torch.cat(parts).numpy()

    def _project(self, name: str, tokens: Tensor) -> Tensor:
        from torch.nn import functional

        prefix = f"hidden_trans_{name}_multimodal"
        linear = functional.linear(tokens, self.weights[f"{prefix}.0.weight"], self.weights[f"{prefix}.0.bias"])
        return functional.layer_norm(
            linear, (self.width,), self.weights[f"{prefix}.1.weight"], self.weights[f"{prefix}.1.bias"], eps=1e-12
        )

    def _frames(self, name: str, count: int) -> Tensor:
        """One row per frame; where the checkpoint was trained with another number of frames, the nearest row at or before."""
        rows = self.weights[f"{name}_frame_embedding"][0]
        return rows[[index * len(rows) // count for index in range(count)]]

    def keys_values(self, condition: Float[np.ndarray, "T 768"]) -> Cached:
        """Keys and values [1, heads, T, head] of the condition tokens in every layer."""
        import torch

        tokens = torch.from_numpy(np.asarray(condition, dtype=np.float32)).to(self.device)[None]
        with torch.inference_mode(), autocast(self.device, self.precision):
            attentions = [layer.crossattention.self for layer in self.bert.encoder.layer]
            return [(self._split(a.key(tokens)), self._split(a.value(tokens))) for a in attentions]

    def scores(self, captions: Sequence[Int[np.ndarray, " length"]], cached: Cached) -> Float32[np.ndarray, " n"]:
        """P(match) of each caption (token ids with [CLS] and [SEP]) with the clip whose keys and values these are."""
        from feature_extractors.encoders.vast.networks import bert

        if not captions:
            return np.zeros(0, np.float32)
        length = -(-max(map(len, captions)) // _BUCKET) * _BUCKET
        ids, observed = bert.pad(list(captions), min(length, self.bert.config.max_position_embeddings), padding=0)
        return self.pieces.run(lambda i, o: self._match(i, o, cached), ids, observed)

    def _match(self, ids: Tensor, observed: Tensor, cached: Cached) -> Tensor:
        with autocast(self.device, self.precision):
            x = self.bert.embeddings(input_ids=ids)
            mask = observed[:, None, None, :]
            for layer, (keys, values) in zip(self.bert.encoder.layer, cached, strict=True):
                own = layer.attention.self
                # Every token sees every token: VAST removed the causal mask from its decoder.
                mixed = _attend(self._split(own.query(x)), self._split(own.key(x)), self._split(own.value(x)), mask)
                x = layer.attention.output(mixed, x)
                query = self._split(layer.crossattention.self.query(x))
                mixed = _attend(query, keys.expand(len(x), -1, -1, -1), values.expand(len(x), -1, -1, -1), None)
                x = layer.crossattention.output(mixed, x)
                x = layer.output(layer.intermediate(x), x)
        return self._head(x[:, 0].float())

    def _head(self, classes: Tensor) -> Tensor:
        import torch
        from torch.nn import functional

        w = self.weights
        hidden = functional.gelu(functional.linear(classes, w["itm_head.linear1.weight"], w["itm_head.linear1.bias"]))
        hidden = functional.layer_norm(
            hidden, hidden.shape[-1:], w["itm_head.layernorm.weight"], w["itm_head.layernorm.bias"], eps=1e-12
        )
        return torch.softmax(functional.linear(hidden, w["itm_head.linear2.weight"], w["itm_head.linear2.bias"]), dim=-1)[:, 1]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads_count, -1)).transpose(1, 2)


def _attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    from torch.nn import functional

    return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask).transpose(1, 2).flatten(2)


def rerank(
    similarity: Float[np.ndarray, "captions clips"],
    captions: Sequence[Int[np.ndarray, " length"]],
    condition: Callable[[int], Float[np.ndarray, "T 768"]],
    matcher: Matcher,
    top: int = TOP,
    queries: str = "captions",
    progress: Callable[[int], None] | None = None,
) -> Float64[np.ndarray, "captions clips"]:
    """Scores in which every query's `top` candidates come first, ordered by P(match), and the others keep their order behind them.

    `queries` says who asks: `captions` (each row's best columns are re-scored) or `clips` (each column's best rows). `condition(j)`
    gives clip j's tokens; a clip is encoded once, and only if some query has it among its best. `progress` gets the clips done.
    Candidates of equal similarity at the border are taken in their order. Raises CalmrlError for an unknown `queries` or `top` < 1.
    """
    if queries not in ("captions", "clips") or top < 1:
        raise CalmrlError(
            f"cannot re-rank the top {top} for queries '{queries}'", hint="queries: captions or clips; top: at least 1"
        )
    axis = 1 if queries == "captions" else 0
    order = np.argsort(-similarity, axis=axis, kind="stable")
    best = np.zeros(similarity.shape, bool)
    np.put_along_axis(best, np.take(order, np.arange(min(top, similarity.shape[axis])), axis=axis), True, axis=axis)
    # P(match) is in [0, 1]; what is not re-scored moves below zero, its order unchanged.
    scores = np.asarray(similarity, dtype=np.float64) - (np.max(similarity) + 1.0)
    for clip in range(similarity.shape[1]):
        meeting = np.flatnonzero(best[:, clip])
        if len(meeting):
            scores[meeting, clip] = matcher.scores(
                [captions[int(row)] for row in meeting], matcher.keys_values(condition(clip))
            )
        if progress is not None:
            progress(1)
    return scores
