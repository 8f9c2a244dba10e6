"""Cross-entropy over the items of a batch, among those that have both sides."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Mean of both directions of cross-entropy with the own item as target, and which items were queries.

    Row i is the query of item i, column j the candidate of item j. Items that have both sides have a target; those that have only one
    still serve the others as negatives on that side. `smoothing` spreads that share of the target evenly over the candidates (label
    smoothing). With `same` [B, B], all items of the own group are targets, in equal parts (Khosla et al. 2020, the outer form), and an item has
    one where its group has a candidate. Without any target, or without a second candidate, the value is a zero that keeps the graph.
    """
    forward, with_target = _one_way(logits, rows, columns, smoothing, same)
    backward, with_target_back = _one_way(logits.mT, columns, rows, smoothing, same)
    return (forward + backward) / 2, with_target | with_target_back


def two_way_cross_entropy(
    there: Float[Tensor, "b b"],
    back: Float[Tensor, "b b"],
    rows: Bool[Tensor, " b"],
    columns: Bool[Tensor, " b"],
    smoothing: float = 0.0,
    same: Bool[Tensor, "b b"] | None = None,
) -> tuple[Float[Tensor, ""], Bool[Tensor, " b"]]:
    """`symmetric_cross_entropy` with logits of their own for each direction, of equal value and different gradients; `back` is the transpose."""
    forward, with_target = _one_way(there, rows, columns, smoothing, same)
    backward, with_target_back = _one_way(back, columns, rows, smoothing, same)
    return (forward + backward) / 2, with_target | with_target_back


def _one_way(
    logits: Tensor, has_query: Tensor, has_candidate: Tensor, smoothing: float, same: Tensor | None
) -> tuple[Tensor, Tensor]:
    candidate = has_candidate.unsqueeze(0)
    log_normaliser = torch.logsumexp(logits.masked_fill(~candidate, _NEVER), dim=1)
    if same is None:
        target, used = logits.diagonal(), has_query & has_candidate
    else:
        right = same & candidate
        count = right.sum(dim=1)
        target, used = torch.where(right, logits, 0.0).sum(dim=1) / count.clamp_min(1), has_query & (count > 0)
    if smoothing:
        mean = torch.where(candidate, logits, 0.0).sum(dim=1) / has_candidate.sum().clamp_min(1)
        target = (1 - smoothing) * target + smoothing * mean
    return torch.where(used, log_normaliser - target, 0.0).sum() / used.sum().clamp_min(1), used


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
