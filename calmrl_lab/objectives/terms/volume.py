"""Volumes spanned by every query with every item's embeddings."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# Added to the diagonal of a Gram matrix in float64: copied embeddings still have a Cholesky factor, volumes above 1e-3 do not notice.
_JITTER = 1e-12


def volumes(
    queries: Float[Tensor, "q d"],
    items: Float[Tensor, "n m d"],
    shown: Bool[Tensor, "n m"],
    epsilon: float = 0.0,
    paired: bool = False,
) -> Float[Tensor, "q n"]:
    """sqrt(det GRAM(query i, shown embeddings of item j) + epsilon) for all i and j; `items` are zero where not shown.

    det [1 c'; c G] = det G (|t|^2 - |Q t|^2) with Q an orthonormal basis of the item (Schur complement): one small factorisation
    an item and m matrix products, where the determinant of [q, n, m+1, m+1] needs gigabytes. Hidden embeddings count as axes orthogonal to
    everything, which leaves exactly the determinant of the shown ones; a zero vector in their place would make every incomplete item a perfect match.

    The item's own part is always computed in float64: nearly collinear embeddings (imputed copies) lose a quarter of their volume in float32.
    `paired` says that query i belongs to item i; these n residuals are computed in float64 too, for they are the small ones. Where the
    determinant is zero the root has no slope, and the gradient is taken to be zero.
    """
    result: Tensor = _Volumes.apply(queries, items, shown, epsilon, paired)
    return result


class _Volumes(torch.autograd.Function):
    """With G = Z Z' + (axes of what is hidden) = L L' and Q = L^-1 Z: volume_ij^2 = det G_j max(|t_i|^2 - |Q_j t_i|^2, 0) + epsilon.

    Arrays of the size of the result are made one at a time and reused: on a CPU fresh memory costs as much as arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, items: Tensor, shown: Tensor, epsilon: float, paired: bool) -> Tensor:
        # Rows that lie k vectors apart, as those of one modality do, slow every product down.
        queries, wide = queries.contiguous(), items.double()
        gram = torch.baddbmm(torch.diag_embed((~shown).double() + _JITTER), wide, wide.mT)
        # Without a check of the result, which would make the host wait; the jitter takes care of it.
        factor = torch.linalg.cholesky_ex(gram)[0]
        identity = torch.eye(gram.shape[-1], dtype=torch.float64, device=items.device).expand_as(gram)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        content = factor.diagonal(dim1=1, dim2=2).square().prod(dim=1)
        basis = inverse @ wide
        # [m, n, d]: rows of one matrix product lie side by side.
        narrow = basis.transpose(0, 1).to(queries.dtype, memory_format=torch.contiguous_format)
        result = queries.square().sum(dim=1, keepdim=True).repeat(1, len(items))
        products = [queries @ vectors.mT for vectors in narrow.unbind()]
        for product in products:
            result.addcmul_(product, product, value=-1.0)
        if paired:
            own = queries.double()
            along = torch.bmm(basis, own.unsqueeze(2)).square().sum(dim=(1, 2))
            result.diagonal().copy_(own.square().sum(dim=1) - along)
        result.clamp_min_(0.0).mul_(content.to(queries.dtype)).add_(epsilon).sqrt_()
        ctx.epsilon, ctx.kind = epsilon, items.dtype
        ctx.save_for_backward(queries, wide, inverse, content, narrow, result, *products)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        queries, wide, inverse, content, basis, result, *products = ctx.saved_tensors
        work = grad * result
        # Half of this is d/d(det G) times det G: sum over queries of slope * (volume^2 - epsilon).
        by_content = work.sum(dim=0).double()
        slope = (grad / result).masked_fill_(result <= ctx.epsilon**0.5, 0.0)
        by_content -= ctx.epsilon * slope.sum(dim=0).double()
        slope.mul_(content.to(grad.dtype))
        grad_queries = queries * slope.sum(dim=1, keepdim=True)
        grad_basis = torch.empty_like(basis)
        for index, product in enumerate(products):
            torch.mul(product, slope, out=work)
            grad_queries.addmm_(work, basis[index], alpha=-1.0)
            torch.mm(work.mT, queries, out=grad_basis[index])
        grad_wide_basis = grad_basis.transpose(0, 1).to(torch.float64, memory_format=torch.contiguous_format).neg_()
        # Through L^-1 and the Cholesky factor (Murray 2016), then G = Z Z'; and d det G = det G <G^-1, dG>.
        through = (grad_wide_basis @ wide.mT) @ inverse.mT
        lower = through.tril(-1) + 0.5 * torch.diag_embed(through.diagonal(dim1=1, dim2=2))
        inner = torch.diag_embed(by_content.unsqueeze(1).expand(-1, wide.shape[1])) - lower - lower.mT
        grad_items = (inverse.mT @ grad_wide_basis).baddbmm_(inverse.mT @ inner @ inverse, wide)
        return grad_queries, grad_items.to(ctx.kind), None, None, None
