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
    """Mean over the present items of -log softmax(U U' / temperature)[own] (PMRL's instance term), for vectors of unit length.

    Absent items are no candidates. Other items of the own group (`same`) are no negatives. `squared` compares by the squared
    cosine, which knows no sign. With fewer than two present items the value is zero.
    """
    related = None
    if same is not None:
        related = same & ~torch.eye(len(present), dtype=torch.bool, device=present.device)
    loss: Tensor = _Uniformity.apply(vectors, present.to(vectors.dtype), related, temperature, squared)
    return loss


def one_sided_uniformity(
    vectors: Float[Tensor, "b d"],
    present: Bool[Tensor, " b"],
    temperature: float,
    same: Bool[Tensor, "b b"] | None = None,
    squared: bool = False,
) -> Float[Tensor, ""]:
    """`instance_uniformity` whose gradient reaches an item as a query only: as a candidate it is held fixed.

    That is what remains where anchors are gathered from several devices without gradient, as CalMRL's released code does. The value is the same.
    """
    excluded = ~present.unsqueeze(0)
    if same is not None:
        excluded = excluded | (same & ~torch.eye(len(present), dtype=torch.bool, device=present.device))
    cosines = vectors @ vectors.detach().mT
    logits = (cosines.square() if squared else cosines) / temperature
    # Finite, so that a row without candidates gives a number (dropped afterwards) and not NaN in the gradient.
    per_item = torch.logsumexp(logits.masked_fill(excluded, -1e9), dim=1) - logits.diagonal()
    return torch.where(present, per_item, 0.0).sum() / present.sum().clamp_min(1)


class _Uniformity(torch.autograd.Function):
    """With E = exp((S - 1) / t), S = U U' or its square: row sums T of E give the loss, E o (w_i / T_i + w_j / T_j) its slope.

    E is symmetric and no entry of S exceeds that of a vector with itself, 1: one shift serves all rows, both directions of the cross-entropy
    are one number, and the gradient needs one more matrix product, of which plain differentiation makes two, and no transpose.
    """

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, present: Tensor, related: Tensor | None, temperature: float, squared: bool
    ) -> Tensor:
        cosines = None
        own = vectors.square().sum(dim=1)
        if squared:
            cosines = vectors @ vectors.mT
            weighed = cosines.square().sub_(1.0).div_(temperature).exp_()
            own = own.square()
        else:
            shift = torch.full((1, 1), -1 / temperature, dtype=vectors.dtype, device=vectors.device)
            weighed = torch.addmm(shift, vectors, vectors.mT, alpha=1 / temperature).exp_()
        if related is not None:
            weighed.masked_fill_(related, 0.0)
        totals = weighed @ present
        weight = present / present.sum().clamp_min(1)
        per_item = torch.where(present > 0, totals.log() - (own - 1) / temperature, 0.0)
        share = torch.where(present > 0, weight / totals, 0.0)
        ctx.temperature = temperature
        ctx.save_for_backward(vectors, present, weight, share, weighed, cosines)
        return (per_item * weight).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        vectors, present, weight, share, weighed, cosines = ctx.saved_tensors
        slope = (weighed * share.unsqueeze(1)).addcmul_(weighed, share.unsqueeze(0))
        if cosines is not None:
            slope.mul_(2 * cosines)
            weight = 2 * weight * cosines.diagonal()
        # Absent items neither repel others nor are repelled.
        towards = (slope @ (vectors * present.unsqueeze(1))).mul_(present.unsqueeze(1))
        towards.addcmul_(weight.unsqueeze(1), vectors, value=-2.0)
        return towards.mul_(grad / ctx.temperature), None, None, None, None
