"""Cross-entropy over the items of a batch, among those that have both sides."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Finite, so that a row or column without candidates gives a number (dropped afterwards) and not NaN in the gradient.
_NEVER = -1e9


def symmetric_cross_entropy(
    logits: Float[Tensor, "b b"],
    rows: Bool[Tensor, " b"],
    columns: Bool[Tensor, " b"],
    smoothing: float = 0.0,
    same: Bool[Tensor, "b b"] | None = None,
) -> tuple[Float[Tensor, ""], Bool[Tensor, " b"]]:
    """Mean of both directions of cross-entropy with the own item as target, and which items asked.

    Row i asks with item i, column j answers with item j. An item asks where it has both sides; items that have only one side
    still serve the others as negatives on that side. `smoothing` spreads that share of the target evenly over the candidates (label
    smoothing). With `same` [B, B], all items of the own group are targets, in equal parts (Khosla et al. 2020, the outer form), and an item asks where
    its group has an answer. Without an item that asks, or without a second candidate, the value is a zero that keeps the graph.
    """
    forward, asked = _one_way(logits, rows, columns, smoothing, same)
    backward, answered = _one_way(logits.mT, columns, rows, smoothing, same)
    return (forward + backward) / 2, asked | answered


def _one_way(logits: Tensor, asking: Tensor, answering: Tensor, smoothing: float, same: Tensor | None) -> tuple[Tensor, Tensor]:
    candidate = answering.unsqueeze(0)
    log_normaliser = torch.logsumexp(logits.masked_fill(~candidate, _NEVER), dim=1)
    if same is None:
        target, asks = logits.diagonal(), asking & answering
    else:
        right = same & candidate
        count = right.sum(dim=1)
        target, asks = torch.where(right, logits, 0.0).sum(dim=1) / count.clamp_min(1), asking & (count > 0)
    if smoothing:
        mean = torch.where(candidate, logits, 0.0).sum(dim=1) / answering.sum().clamp_min(1)
        target = (1 - smoothing) * target + smoothing * mean
    return torch.where(asks, log_normaliser - target, 0.0).sum() / asks.sum().clamp_min(1), asks
