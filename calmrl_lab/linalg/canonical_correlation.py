"""Regularised canonical correlation of two sets of coordinates, from their moments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class CanonicalCorrelation:
    """Canonical directions of two modalities: `left` [r_a, c] and `right` [r_b, c] on centred coordinates, `correlations` [c] falling; float64.

    Each pair of columns has the largest correlation that is left over by those before it (Hotelling, Biometrika 1936), with
    regularised covariances (Vinod, J. Econometrics 1976).
    """

    left: Float[Tensor, "r_a c"]
    right: Float[Tensor, "r_b c"]
    correlations: Float[Tensor, " c"]

    @classmethod
    def of(
        cls,
        left: Float[Tensor, "r_a r_a"],
        right: Float[Tensor, "r_b r_b"],
        cross: Float[Tensor, "r_a r_b"],
        regularisation: float,
        most: int,
    ) -> Self:
        """At most `most` directions from covariances, to whose diagonals `regularisation` times the mean variance is added.

        The more is added the less the directions are whitened; towards infinity they are those of the largest covariance (partial least
        squares).

        >>> spread = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
        >>> CanonicalCorrelation.of(spread, spread, spread / 2, 0.0, 2).correlations
        tensor([0.5000, 0.5000], dtype=torch.float64)
        """
        ours, theirs = _root_inverse(left, regularisation), _root_inverse(right, regularisation)
        u, correlations, v = torch.linalg.svd(ours @ cross @ theirs, full_matrices=False)
        kept = min(most, len(correlations))
        return cls(ours @ u[:, :kept], theirs @ v[:kept].T, correlations[:kept])

    def weighted(self, dimensions: int) -> tuple[Float[Tensor, "r_a c"], Float[Tensor, "r_b c"]]:
        """The first `dimensions` directions of both sides, times the square roots of their correlations: an inner product of such coordinates
        counts each direction by how much the two modalities share in it."""
        weights = self.correlations[:dimensions].clamp_min(0).sqrt()
        return self.left[:, :dimensions] * weights, self.right[:, :dimensions] * weights


def _root_inverse(covariance: Float[Tensor, "r r"], regularisation: float) -> Float[Tensor, "r r"]:
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    mean = values.clamp_min(0).mean().clamp_min(1e-300)
    # Without regularisation, directions in which nothing varies stay out instead of dividing by zero.
    values = values + regularisation * mean
    usable = values > 1e-12 * mean
    return (vectors * torch.where(usable, values.clamp_min(1e-300).rsqrt(), 0.0)) @ vectors.T
