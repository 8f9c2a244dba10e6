"""Positive definite matrices, by Cholesky."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def inverse(matrices: Float[Tensor, "*batch q q"]) -> Float[Tensor, "*batch q q"]:
    """Of positive definite matrices. Not by LU: several threads of MKL fail at batches of it from q = 192 on."""
    return torch.cholesky_inverse(torch.linalg.cholesky(matrices))
