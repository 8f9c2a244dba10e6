"""Modality sets to singular values and anchors, through the k x k Gram matrix, with a gradient that stays finite."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from calmrl_lab.errors import CalmrlError
from calmrl_lab.linalg.jacobi import eigenvectors

Sign = Literal["mean", "raw"]


class Spectrum(NamedTuple):
    """Singular values [B, k], descending, and anchors [B, d] of B modality sets."""

    singular_values: Float[Tensor, "b k"]
    anchor: Float[Tensor, "b d"]


def spectrum(embeddings: Float[Tensor, "b k d"], mask: Bool[Tensor, "b k"], sign: Sign = "mean") -> Spectrum:
    """Singular values and anchor of every item's observed embeddings.

    The columns of an item's d x k matrix Z are its observed embeddings; its anchor is the leading left singular vector u1 (CalMRL,
    section 3). Singular values are in descending order; unobserved modalities contribute zeros, whatever stands there, NaN included. An
    item with nothing observed gets zeros and a zero anchor. NaN in an observed embedding makes that item NaN.

    A singular vector has no sign of its own. `mean` points it with the sum of the embeddings (where they cancel out, its largest
    coordinate is positive). `raw` takes what torch.linalg.svd happens to return, as PMRL's released code does: about half of these
    point against their own modalities, which turns the uniformity loss into noise. It is there for comparison, and slow.

    The k x k Gram matrix is decomposed instead of the d x k set: same values, hundreds of times cheaper than a full SVD. The gradient is that
    of the SVD where the leading two singular values differ, and bounded where they meet. Half precision is computed in float32.
    Raises CalmrlError unless embeddings are [B, k, d] and mask is bool [B, k].

    >>> import torch
    >>> from calmrl_lab.linalg.spectrum import spectrum
    >>> z = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])  # one item: two modalities agree, the third is orthogonal
    >>> found = spectrum(z, torch.ones(1, 3, dtype=torch.bool))
    >>> found.singular_values.round(decimals=3), found.anchor.round(decimals=3)
    (tensor([[1.4140, 1.0000, 0.0000]]), tensor([[1., 0.]]))
    """
    if embeddings.ndim != 3 or mask.shape != embeddings.shape[:2] or mask.dtype != torch.bool:
        raise CalmrlError(
            f"spectrum needs embeddings [B, k, d] and a bool mask [B, k], got {list(embeddings.shape)} and {mask.dtype} {list(mask.shape)}"
        )
    wide = embeddings.dtype if embeddings.dtype in (torch.float32, torch.float64) else torch.float32
    with torch.autocast(embeddings.device.type, enabled=False):
        values, anchor = _GramSpectrum.apply(embeddings.to(wide), mask)
        if sign == "raw":
            anchor = anchor * _svd_sign(embeddings.detach().to(wide), mask, anchor.detach())
    return Spectrum(values, anchor)


@torch.no_grad()
def _svd_sign(embeddings: Tensor, mask: Tensor, anchor: Tensor) -> Tensor:
    shown = embeddings.masked_fill(~mask.unsqueeze(-1), 0.0)
    raw = torch.linalg.svd(shown.mT, full_matrices=False)[0][:, :, 0]
    return torch.where((raw * anchor).sum(dim=1, keepdim=True) < 0, -1.0, 1.0).to(anchor.dtype)


def _guard(dtype: torch.dtype) -> float:
    """The eigenvalue gap below which 1/gap is replaced by gap/(gap^2 + g^2): at g the exact gradient is noise already."""
    return 1e-8 if dtype == torch.float64 else 1e-4


class _GramSpectrum(torch.autograd.Function):
    """Z [B, k, d] and mask [B, k] -> (singular values [B, k], u1 [B, d]).

    Per item, Z' = U S V' (rows of our [k, d] array are the columns of Z). Of the size of Z there are only three arrays: Z without what is
    hidden, L = V'Z, whose rows are s_j u_j, and the gradient; everything else happens in k x k. The differential of u1 in the direction u_j (j > 1) is
    (s1 <u_j, dZ v_1> + s_j <u_1, dZ v_j>) / (s1^2 - s_j^2), and <., dZ v_1> / s1 outside the span of U; that of s_j is
    <u_j, dZ v_j>. No small s_j is divided by but in u_j itself, so a copied modality is harmless.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        z = embeddings.masked_fill(~mask.unsqueeze(-1), 0.0)
        v = eigenvectors(z @ z.mT)
        left = v.mT @ z
        # The norm of Z v_j is accurate to rounding of s1, the root of an eigenvalue only to its square root (1e-8 in float64).
        values = left.norm(dim=-1)
        eps = torch.finfo(z.dtype).eps
        values = values.masked_fill(values <= 32 * eps * max(z.shape[1], z.shape[2] ** 0.5) * values[:, :1], 0.0)
        inverse = torch.where(values == 0, 0.0, 1 / values)
        anchor = left[:, 0] * inverse[:, :1]
        # <u1, z_m> = s1 v_m1, so the side of the sum of embeddings is that of the sum of v1.
        along = v[:, :, 0].sum(dim=1, keepdim=True)
        largest = anchor.gather(1, anchor.abs().argmax(dim=1, keepdim=True))
        side = torch.where(along.abs() <= 8 * eps * z.shape[1], largest, along)
        sign = torch.where(side < 0, -1.0, 1.0).to(z.dtype)
        # Eigenvalues below rounding are not in order, their refined values may be.
        ordered, order = values.sort(dim=-1, descending=True, stable=True)
        ctx.save_for_backward(mask, left, v, values, inverse, sign, order)
        return ordered, anchor * sign

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor, grad_anchor: Tensor) -> tuple[Tensor, None]:
        mask, left, v, s, inverse, sign, order = ctx.saved_tensors
        by_vector = torch.zeros_like(s).scatter(1, order, grad_values)
        towards = grad_anchor * sign
        # Shares of the incoming gradient along u_j; along u1 it has no effect, for u1 has unit length.
        # A product and a sum: a matrix-vector product per item takes three times as long.
        shares = (left * towards.unsqueeze(1)).sum(dim=2) * inverse
        gap = s[:, :1].square() - s.square()
        slope = shares * gap / (gap.square() + _guard(s.dtype) ** 2)
        first, inverse1 = v[:, :, 0], inverse[:, :1]
        # What multiplies u_j in the gradient of row m: [B, m, j].
        mix = v * by_vector.unsqueeze(1) + first.unsqueeze(2) * (slope * s[:, :1] - shares * inverse1).unsqueeze(1)
        mix[:, :, 0] += (v * (slope * s).unsqueeze(1)).sum(dim=2)
        hidden = ~mask
        mix = (mix * inverse.unsqueeze(1)).masked_fill_(hidden.unsqueeze(2), 0.0)
        outside = (first * inverse1).masked_fill(hidden, 0.0)
        return (outside.unsqueeze(2) * towards.unsqueeze(1)).baddbmm_(mix, left), None
