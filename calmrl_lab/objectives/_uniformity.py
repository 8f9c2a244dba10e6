"""Cross-entropy of vectors against themselves, each its own target: it drives items apart."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def instance_uniformity(
    vectors: Float[Tensor, "b d"],
    present: Bool[Tensor, " b"],
    temperature: float,
    same: Bool[Tensor, "b b"] | None = None,
    squared: bool = False,
) -> Float[Tensor, ""]:
    """Mean over the present items of -log softmax(U U' / temperature)[own] (PMRL's instance term).

    Absent items are no candidates. Other items of the own group (`same`) are no negatives. `squared` compares by the squared
    cosine, which knows no sign. With fewer than two present items the value is zero.
    """
    excluded = ~present.unsqueeze(0)
    if same is not None:
        own = torch.eye(len(present), dtype=torch.bool, device=present.device)
        excluded = excluded | (same & ~own)
    loss: Tensor = _Uniformity.apply(vectors, present, excluded, temperature, squared)
    return loss


class _Uniformity(torch.autograd.Function):
    """The matrix is symmetric, so both directions of the cross-entropy are one number; with S = U U' and P = softmax(S / t) its
    gradient is (P + P' - 2 I) U / (t B): two matrix products, of which plain differentiation makes three, and one matrix kept."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, present: Tensor, excluded: Tensor, temperature: float, squared: bool) -> Tensor:
        cosines = vectors @ vectors.mT
        logits = (cosines.square() if squared else cosines).div_(temperature)
        own = logits.diagonal().clone()
        # An absent item has excluded itself: its row is dropped, and must not be all -inf meanwhile.
        probability = logits.masked_fill_(excluded, -torch.inf)
        top = probability.amax(dim=1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).min)
        total = probability.sub_(top).exp_().sum(dim=1, keepdim=True)
        weight = present.to(vectors.dtype) / present.sum().clamp_min(1)
        per_item = torch.where(present, total.log().add_(top).squeeze(1) - own, 0.0)
        # Rows times their share in the mean; minus one at the target.
        probability.mul_(weight.unsqueeze(1) / torch.where(total > 0, total, 1.0))
        probability.diagonal().sub_(weight)
        ctx.temperature, ctx.squared = temperature, squared
        ctx.save_for_backward(vectors, probability, *([cosines] if squared else []))
        return (per_item * weight).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        vectors, slope, *cosines = ctx.saved_tensors
        if ctx.squared:
            slope = 2 * slope * cosines[0]
        both = slope + slope.mT
        return (both @ vectors).mul_(grad / ctx.temperature), None, None, None, None
