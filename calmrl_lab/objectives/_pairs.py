"""Contrastive learning of chosen pairs of modalities: what CLIP, ImageBind and LanguageBind have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.objectives._contrastive import symmetric_cross_entropy


def pairwise_contrast(
    embeddings: Float[Tensor, "b k d"],
    mask: Bool[Tensor, "b k"],
    pairs: Sequence[tuple[int, int]],
    scales: Sequence[Float[Tensor, ""]],
    same: Bool[Tensor, "b b"] | None = None,
) -> tuple[Float[Tensor, ""], Bool[Tensor, " b"]]:
    """Mean over the valid pairs of symmetric cross-entropy of scale * cosine, and which items a valid pair used.

    A pair is trained on the items that show both; items that show one of them are negatives for that side. It is valid if at least
    two items ask in it. `embeddings` are zero where hidden. No valid pair: a zero that keeps the graph.
    """
    total = embeddings.sum() * 0.0
    valid_pairs = torch.zeros((), dtype=embeddings.dtype, device=embeddings.device)
    used = torch.zeros_like(mask[:, 0])
    for (a, b), scale in zip(pairs, scales, strict=True):
        logits = scale.to(embeddings.dtype) * (embeddings[:, a] @ embeddings[:, b].mT)
        term, asked = symmetric_cross_entropy(logits, mask[:, a], mask[:, b], same=same)
        valid = asked.sum() > 1
        total = total + torch.where(valid, term, 0.0)
        valid_pairs = valid_pairs + valid
        used = used | (asked & valid)
    return total / valid_pairs.clamp_min(1), used


def hold(embeddings: Tensor, frozen: Sequence[int]) -> Tensor:
    """`embeddings` [B, k, d] with no gradient into the modalities `frozen`."""
    if not frozen:
        return embeddings
    columns = [column.detach() if index in frozen else column for index, column in enumerate(embeddings.unbind(dim=1))]
    return torch.stack(columns, dim=1)
