"""Volumes spanned by every query with every item's embeddings."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# Added to the diagonal of a Gram matrix in float64: copied embeddings still have a Cholesky factor, volumes above 1e-3 do not notice.
_JITTER = 1e-12


def squared_volumes(
    queries: Float[Tensor, "q d"], items: Float[Tensor, "n m d"], shown: Bool[Tensor, "n m"], paired: bool = False
) -> Float[Tensor, "q n"]:
    """det Gram(query i, shown embeddings of item j) for all i and j, at least 0; `items` are zero where not shown.

    det [1 c'; c G] = det G (|t|^2 - |Q t|^2) with Q an orthonormal basis of the item (Schur complement): one small factorisation
    an item and m matrix products, where the determinant of [q, n, m+1, m+1] needs gigabytes. Hidden embeddings count as axes orthogonal to
    everything, which leaves exactly the determinant of the shown ones; a zero vector in their place would make every incomplete item a perfect match.

    The item's own part is always computed in float64: nearly collinear embeddings (imputed copies) lose a quarter of their volume in float32.
    `paired` says that query i belongs to item i; these n residuals are computed in float64 too, for they are the small ones.
    """
    wide = items.double()
    gram = wide @ wide.mT
    size = gram.shape[-1]
    axes = torch.diag_embed((~shown).double() + _JITTER)
    factor = torch.linalg.cholesky_ex(gram + axes)[0]
    content = factor.diagonal(dim1=1, dim2=2).square().prod(dim=1)
    identity = torch.eye(size, dtype=torch.float64, device=items.device).expand_as(factor)
    basis = torch.linalg.solve_triangular(factor, identity, upper=False) @ wide
    residual = _Residual.apply(queries, basis.to(queries.dtype))
    if paired:
        own = queries.double().square().sum(dim=1) - torch.einsum("nmd,nd->nm", basis, queries.double()).square().sum(dim=1)
        residual = residual.diagonal_scatter(own.to(residual.dtype))
    return residual.clamp_min(0.0) * content.to(residual.dtype)


class _Residual(torch.autograd.Function):
    """|t_i|^2 - sum_m <t_i, q_jm>^2 for queries t [q, d] and bases q [n, m, d]; keeps the m products [q, n] for the gradient."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, basis: Tensor) -> Tensor:
        residual = queries.square().sum(dim=1, keepdim=True).repeat(1, len(basis))
        products = [queries @ vectors.mT for vectors in basis.unbind(dim=1)]
        for product in products:
            residual.addcmul_(product, product, value=-1.0)
        ctx.save_for_backward(queries, basis, *products)
        return residual

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        queries, basis, *products = ctx.saved_tensors
        grad_queries = 2 * queries * grad.sum(dim=1, keepdim=True)
        grad_basis = torch.empty_like(basis)
        for index, product in enumerate(products):
            slope = product * grad
            grad_queries.addmm_(slope, basis[:, index], alpha=-2.0)
            grad_basis[:, index] = (slope.mT @ queries).mul_(-2.0)
        return grad_queries, grad_basis
