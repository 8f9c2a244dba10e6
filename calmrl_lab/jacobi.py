"""Eigenvectors of many small symmetric matrices without a word to the host, for devices on which asking costs more than computing."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


def _sweeps(size: int) -> int:
    """Enough for float64, one more than was ever needed; sets of more vectors than dimensions are then diagonal to 1e-10 only."""
    if size == 2:
        return 1
    return 6 if size <= 4 else 7 + size // 8


def eigenvectors(matrices: Float[Tensor, "b k k"]) -> Float[Tensor, "b k k"]:
    """Orthonormal eigenvectors (columns), eigenvalues descending, of B symmetric matrices; matrices that are not finite give some basis.

    On the CPU this is LAPACK. Elsewhere it is Jacobi's method in whole-batch operations: torch.linalg.eigh reads back
    whether it converged, which makes the host wait for the device in every training step.
    """
    if matrices.device.type == "cpu":
        # LAPACK refuses NaN with an exception; whoever passed them finds them in what is computed from these vectors.
        finite = torch.where(torch.isfinite(matrices), matrices, 0.0)
        return torch.linalg.eigh(finite)[1].flip(-1)
    return jacobi(matrices)


def jacobi(matrices: Float[Tensor, "b k k"]) -> Float[Tensor, "b k k"]:
    """`eigenvectors` by parallel cyclic Jacobi rotations: each round turns k/2 disjoint planes at once, k - 1 rounds are a sweep."""
    size = matrices.shape[-1]
    basis = torch.eye(size, dtype=matrices.dtype, device=matrices.device).expand_as(matrices)
    if size > 1:
        rotated = matrices
        for _ in range(_sweeps(size)):
            for first, second, crossing, turning in _rounds(size, str(matrices.device), matrices.dtype):
                turn = _rotation(rotated, first, second, crossing, turning)
                rotated = turn.mT @ rotated @ turn
                basis = basis @ turn
        order = rotated.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)
        basis = basis.gather(2, order.unsqueeze(1).expand_as(basis))
    return basis


def _rotation(matrices: Tensor, first: Tensor, second: Tensor, crossing: Tensor, turning: Tensor) -> Tensor:
    """The rotations [B, k, k] that zero the entries (first, second) of each matrix (Golub and Van Loan, section 8.5)."""
    flat = matrices.flatten(1)
    size = matrices.shape[-1]
    across = flat[:, first * size + second]
    difference = flat[:, second * size + second] - flat[:, first * size + first]
    # tan of the smaller angle: sign(theta) / (|theta| + sqrt(theta^2 + 1)), theta = difference / (2 across), without dividing by `across`.
    root = torch.hypot(difference, 2 * across)
    bottom = difference.abs() + root
    tangent = torch.where(difference < 0, -2 * across, 2 * across) / torch.where(bottom > 0, bottom, 1.0)
    cosine = torch.rsqrt(1 + tangent.square())
    identity = torch.eye(size, dtype=matrices.dtype, device=matrices.device)
    turned = (cosine - 1) @ crossing + (cosine * tangent) @ turning
    return identity + turned.unflatten(1, (size, size))


@lru_cache(maxsize=64)
def _rounds(size: int, device: str, dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """A round-robin tournament: every pair of `size` meets once, in rounds of disjoint pairs.

    Per round: indices [r] of the pairs, and what cos - 1 [r, k*k] and sin [r, k*k] add to the identity.
    """
    players: list[int | None] = [*range(size), *([None] if size % 2 else [])]
    rounds = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = [
            (min(a, b), max(a, b))
            for a, b in zip(players[:half], reversed(players[half:]), strict=True)
            if a is not None and b is not None
        ]
        crossing, turning = torch.zeros(2, len(pairs), size, size, dtype=dtype)
        for row, (a, b) in enumerate(pairs):
            crossing[row, a, a] = crossing[row, b, b] = 1.0
            turning[row, a, b], turning[row, b, a] = 1.0, -1.0
        first, second = torch.tensor(pairs).T
        rounds.append(tuple(part.to(device) for part in (first, second, crossing.flatten(1), turning.flatten(1))))
        players = [players[0], players[-1], *players[1:-1]]
    return rounds
