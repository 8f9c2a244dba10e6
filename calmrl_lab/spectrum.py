"""Modality sets to singular values and anchors, through the k x k Gram matrix, with a gradient that stays finite."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from calmrl_lab.errors import CalmrlError


class Spectrum(NamedTuple):
    """Singular values [B, k], descending, and anchors [B, d] of B modality sets."""

    singular_values: Float[Tensor, "b k"]
    anchor: Float[Tensor, "b d"]


def spectrum(embeddings: Float[Tensor, "b k d"], mask: Bool[Tensor, "b k"]) -> Spectrum:
    """Singular values and anchor of every item's observed embeddings.

    The columns of an item's d x k matrix Z are its observed embeddings; its anchor is the leading left singular vector u1 (CalMRL,
    section 3), with its sign fixed so that it points with the sum of the embeddings: a bare SVD leaves the sign to chance, which
    turns the uniformity loss into noise. Singular values are in descending order; unobserved modalities contribute zeros, whatever stands
    there, NaN included. An item with nothing observed gets zeros and a zero anchor.

    The k x k Gram matrix is decomposed instead of the d x k set: same values, hundreds of times cheaper than a full SVD. The gradient is that of the
    SVD where the leading two singular values differ, and bounded where they meet. Half precision is computed in float32.
    Raises CalmrlError unless embeddings are [B, k, d] and mask is bool [B, k].
    """
    if embeddings.ndim != 3 or mask.shape != embeddings.shape[:2] or mask.dtype != torch.bool:
        raise CalmrlError(
            f"spectrum needs embeddings [B, k, d] and a bool mask [B, k], got {list(embeddings.shape)} and {mask.dtype} {list(mask.shape)}"
        )
    wide = embeddings.dtype if embeddings.dtype in (torch.float32, torch.float64) else torch.float32
    shown = embeddings.to(wide).masked_fill(~mask.unsqueeze(-1), 0.0)
    values, anchor = _GramSpectrum.apply(shown)
    return Spectrum(values, anchor)


def _guard(dtype: torch.dtype) -> float:
    """The eigenvalue gap below which 1/gap is replaced by gap/(gap^2 + g^2): at g the exact gradient is noise already."""
    return 1e-8 if dtype == torch.float64 else 1e-4


class _GramSpectrum(torch.autograd.Function):
    """Z [B, k, d] -> (singular values [B, k], u1 [B, d]).

    With Z' = U S V' per item (rows of our [k, d] array are the columns of Z), the differential of u1 in the direction u_j (j > 1) is
    (s1 <u_j, dZ v_1> + s_j <u_1, dZ v_j>) / (s1^2 - s_j^2), and <., dZ v_1> / s1 outside the span of U; that of s_j is
    <u_j, dZ v_j>. Nothing divides by a small s_j, so a copied modality is harmless.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        _, v = torch.linalg.eigh(z @ z.mT)
        v = v.flip(-1)  # eigenvalues ascend
        left = v.mT @ z  # [B, k, d], row j = s_j u_j
        # The norm of Z v_j is accurate to rounding of s1, the root of an eigenvalue only to its square root (1e-8 in float64).
        values = left.norm(dim=-1)
        values, order = values.sort(dim=-1, descending=True, stable=True)
        v = v.gather(2, order.unsqueeze(1).expand_as(v))
        left = left.gather(1, order.unsqueeze(-1).expand_as(left))
        tiny = torch.finfo(z.dtype).eps * 8 * z.shape[1] * values[:, :1]
        alive = values > tiny
        values = values.masked_fill(~alive, 0.0)
        u = torch.where(alive.unsqueeze(-1), left / values.clamp_min(torch.finfo(z.dtype).tiny).unsqueeze(-1), 0.0)
        along = (u[:, 0] * z.sum(dim=1)).sum(dim=-1)
        # Exactly balanced sets have no side to point to; the first coordinate that is not zero decides, so that equal sets agree.
        first = u[:, 0].gather(1, (u[:, 0] != 0).to(torch.int8).argmax(dim=1, keepdim=True)).squeeze(1)
        undecided = along.abs() <= tiny.squeeze(1)
        sign = torch.where(torch.where(undecided, first, along) < 0, -1.0, 1.0).to(z.dtype)
        u = torch.cat([u[:, :1] * sign[:, None, None], u[:, 1:]], dim=1)
        v = torch.cat([v[:, :, :1] * sign[:, None, None], v[:, :, 1:]], dim=2)
        ctx.save_for_backward(values, u, v)
        return values, u[:, 0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor, grad_anchor: Tensor) -> Tensor:
        s, u, v = ctx.saved_tensors
        u1, v1, s1 = u[:, 0], v[:, :, 0], s[:, :1]
        # d s_j = <u_j, dZ v_j>
        grad = torch.einsum("bj,bkj,bjd->bkd", grad_values, v, u)
        # d u1: w is the part of the incoming gradient across u1, a_j its share along u_j.
        w = grad_anchor - u1 * (u1 * grad_anchor).sum(-1, keepdim=True)
        a = (u * w.unsqueeze(1)).sum(-1)
        a = torch.cat([torch.zeros_like(a[:, :1]), a[:, 1:]], dim=1)
        gap = s1.square() - s.square()
        guard = _guard(s.dtype)
        share = a * gap / (gap.square() + guard**2)
        grad = grad + torch.einsum("bk,bd->bkd", v1, torch.einsum("bj,bjd->bd", share * s1, u))
        grad = grad + torch.einsum("bkj,bd->bkd", v * (share * s).unsqueeze(1), u1)
        outside = w - torch.einsum("bj,bjd->bd", a, u)
        inverse = torch.where(s1 > 0, 1 / s1.clamp_min(torch.finfo(s.dtype).tiny), torch.zeros_like(s1))
        return grad + torch.einsum("bk,bd->bkd", v1, outside * inverse)
