"""Cross-entropy over the items of a batch, among those that have both sides."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Finite, so that a row or column without candidates gives a number (dropped afterwards) and not NaN in the gradient.
_NEVER = -1e9


def symmetric_cross_entropy(
    logits: Float[Tensor, "b b"], rows: Bool[Tensor, " b"], columns: Bool[Tensor, " b"], smoothing: float = 0.0
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean of both directions of cross-entropy with the diagonal as target, and the number of items counted.

    Row i asks with item i, column j answers with item j. An item counts where it has both; items that have only one side
    still serve the others as negatives on that side. `smoothing` spreads that share of the target evenly over the candidates (label
    smoothing). Without a counted item, or without a second candidate, the value is a zero that keeps the graph.
    """
    both = rows & columns
    count = both.sum()
    forward = _one_way(logits, both, columns, smoothing)
    backward = _one_way(logits.mT, both, rows, smoothing)
    return (forward + backward) / (2 * count.clamp_min(1)), count


def _one_way(logits: Tensor, asks: Tensor, answers: Tensor, smoothing: float) -> Tensor:
    seen = logits.masked_fill(~answers.unsqueeze(0), _NEVER)
    log_normaliser = torch.logsumexp(seen, dim=1)
    loss = log_normaliser - logits.diagonal()
    if smoothing:
        mean = logits.masked_fill(~answers.unsqueeze(0), 0.0).sum(dim=1) / answers.sum().clamp_min(1)
        loss = (1 - smoothing) * loss + smoothing * (log_normaliser - mean)
    return torch.where(asks, loss, 0.0).sum()
