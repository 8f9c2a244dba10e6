"""Eigenvectors of many small symmetric matrices without synchronising with the host, for GPUs, where that costs more than the computation."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


def _sweeps(size: int, dtype: torch.dtype) -> int:
    """One more than was ever needed; sets of more vectors than dimensions are then diagonal to 1e-10 only."""
    if size == 2:
        return 1
    # Convergence is quadratic: what is right to half of float64's digits is right in float32.
    return (6 if size <= 4 else 7 + size // 8) - (dtype != torch.float64)


def eigenvectors(matrices: Float[Tensor, "b k k"]) -> Float[Tensor, "b k k"]:
    """Orthonormal eigenvectors (columns), eigenvalues descending, of B symmetric matrices; matrices that are not finite give some basis.

    On the CPU this is LAPACK. Elsewhere it is Jacobi's method in whole-batch operations: torch.linalg.eigh reads back
    whether it converged, which makes the host wait for the device in every training step.
    """
    if matrices.device.type == "cpu":
        # LAPACK refuses NaN with an exception; here they stay visible in what is computed from these vectors.
        finite = torch.where(torch.isfinite(matrices), matrices, 0.0)
        return torch.linalg.eigh(finite)[1].flip(-1)
    return jacobi(matrices)


def jacobi(matrices: Float[Tensor, "b k k"]) -> Float[Tensor, "b k k"]:
    """`eigenvectors` by parallel cyclic Jacobi rotations: each round turns k/2 disjoint planes at once, k - 1 rounds are a sweep.

    A round is a dozen operations, whatever the batch and k: where batches are small, a GPU's time goes into starting them.
    """
    size = matrices.shape[-1]
    basis = torch.eye(size, dtype=matrices.dtype, device=matrices.device).expand_as(matrices)
    if size > 1:
        rotated = matrices
        for _ in range(_sweeps(size, matrices.dtype)):
            for planes in _rounds(size, str(matrices.device), matrices.dtype):
                turn = _rotation(rotated, *planes)
                rotated = turn.mT @ rotated @ turn
                basis = basis @ turn
        order = rotated.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)
        basis = basis.gather(2, order.unsqueeze(1).expand_as(basis))
    return basis


def _rotation(matrices: Tensor, doubled: Tensor, difference: Tensor, still: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """The rotations [B, k, k] that zero one entry per plane of each matrix (Golub and Van Loan, section 8.5); planes as in `_rounds`."""
    flat = matrices.flatten(1)
    # The smaller of the two angles; equal diagonal entries turn by 45 degrees, and not at all if nothing lies across.
    slope = ((flat @ doubled) / (flat @ difference)).nan_to_num_(nan=0.0)
    angle = slope.atan_().mul_(0.5)
    turned = torch.addmm(torch.addmm(still, angle.cos(), cosines), angle.sin(), sines)
    return turned.unflatten(1, matrices.shape[1:])


@lru_cache(maxsize=64)
def _rounds(size: int, device: str, dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """A round-robin tournament: every pair (p, q) of `size` meets once, in rounds of r disjoint pairs.

    Per round, as matrices that a flattened one is multiplied with: 2 a_pq and a_qq - a_pp [k*k, r]; and the rotation in these planes, which
    is `still` [k*k] (who has no partner) + cos [r] @ `cosines` [r, k*k] + sin @ `sines`.
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
        doubled, difference, cosines, sines = torch.zeros(4, len(pairs), size, size, dtype=dtype)
        for row, (p, q) in enumerate(pairs):
            doubled[row, p, q] = 2.0
            difference[row, q, q], difference[row, p, p] = 1.0, -1.0
            cosines[row, p, p] = cosines[row, q, q] = 1.0
            sines[row, p, q], sines[row, q, p] = 1.0, -1.0
        still = torch.eye(size, dtype=dtype) - cosines.sum(dim=0)
        matrices = (doubled.flatten(1).T, difference.flatten(1).T, still.flatten(), cosines.flatten(1), sines.flatten(1))
        rounds.append(tuple(part.to(device) for part in matrices))
        players = [players[0], players[-1], *players[1:-1]]
    return rounds
