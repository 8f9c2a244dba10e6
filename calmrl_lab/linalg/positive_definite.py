"""The root of a latent posterior precision, also where rounding has made the precision indefinite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def precision_root(weights: Sequence[Float[Tensor, "d_m q"]], noise: Sequence[Float[Tensor, ""]]) -> Float[Tensor, "q q"]:
    """Lower triangular root of K = I + sum_m W'W / s_m^2 over the given modalities (at least one), float64.

    A modality with next to no noise (fewer features than dimensions, say) can outweigh the identity by 1e16 and more; the sum
    of squares is then no longer positive definite in floating point. The QR factorisation of [I; W / s] has the same root and
    never forms the squares.
    """
    q = weights[0].shape[1]
    eye = torch.eye(q, dtype=weights[0].dtype, device=weights[0].device)
    precision = eye.clone()
    for w, variance in zip(weights, noise, strict=True):
        precision += w.T @ w / variance
    factor, failed = torch.linalg.cholesky_ex(precision)
    if not bool(failed):
        return factor
    upper = torch.linalg.qr(
        torch.cat([eye, *(w / variance.sqrt() for w, variance in zip(weights, noise, strict=True))]), mode="r"
    ).R
    return (upper * torch.where(upper.diagonal() < 0, -1.0, 1.0).unsqueeze(1)).T


def inverse(precisions: Float[Tensor, "*batch q q"]) -> Float[Tensor, "*batch q q"]:
    """Of latent posterior precisions, which are I plus what modalities say, so that no eigenvalue is below 1.

    Not by LU: several threads of MKL fail at batches of it from q = 192 on. Where rounding has made a precision indefinite (see `precision_root`),
    eigenvalues as small as the rounding of the largest are set to 1, the precision of the prior.
    """
    factors, failed = torch.linalg.cholesky_ex(precisions)
    if not bool(failed.any()):
        return torch.cholesky_inverse(factors)
    values, vectors = torch.linalg.eigh(precisions)
    rounding = values.shape[-1] * torch.finfo(values.dtype).eps * values[..., -1:]
    values = torch.where(values > rounding, values, 1.0).clamp_min(1.0)
    return (vectors / values.unsqueeze(-2)) @ vectors.mT
