"""Ridge regression with many targets, its strength chosen by generalised cross-validation; rows or columns, whichever are
fewer."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_STRENGTHS = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)


def ridge(
    sources: Float[Tensor, "n a"], targets: Float[Tensor, "n b"], strength: float | None = None
) -> tuple[Float[Tensor, "a b"], float]:
    """Coefficients of `targets` on `sources` (both centred), and the strength used.

    `strength` is the ridge penalty as a multiple of the mean eigenvalue of the Gram matrix. By default the one of least
    generalised cross-validation error (Golub, Heath and Wahba 1979) of nine.
    """
    n, a = sources.shape
    few_rows = n <= a
    gram = sources @ sources.T if few_rows else sources.T @ sources
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp(min=0)
    unit = float(values.sum()) / min(n, a)
    if unit == 0:
        return sources.new_zeros(a, targets.shape[1]), 0.0
    # Targets along the eigenvectors: of row space directly, of column space through the sources.
    turned = vectors.T @ targets if few_rows else vectors.T @ (sources.T @ targets)
    if strength is None:
        strength = min(_STRENGTHS, key=lambda s: _cross_validation(values, turned, targets, s * unit, few_rows))
    shrunk = turned / (values + strength * unit).unsqueeze(1)
    return (sources.T @ (vectors @ shrunk) if few_rows else vectors @ shrunk), strength


def _cross_validation(values: Tensor, turned: Tensor, targets: Tensor, penalty: float, few_rows: bool) -> float:
    n = len(targets)
    left = penalty / (values + penalty)
    if few_rows:
        residual = float((turned.square().sum(dim=1) * left.square()).sum())
    else:
        # ||y - H y||^2 with H y = U diag(1 - left) U'y, and U'y = turned / singular value.
        energy = turned.square().sum(dim=1) / values.clamp(min=1e-300)
        energy = torch.where(values > 0, energy, 0.0)
        residual = max(float(targets.square().sum() - (energy * (1 - left.square())).sum()), 0.0)
    freedom = n - float((1 - left).sum())
    # One degree of freedom went into the means.
    return residual / max(freedom - 1, 1e-3) ** 2
