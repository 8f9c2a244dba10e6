"""Regularised canonical correlation of two modalities on their principal axes."""

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
    regularised variances (Vinod, Journal of Econometrics 1976).
    """

    left: Float[Tensor, "r_a c"]
    right: Float[Tensor, "r_b c"]
    correlations: Float[Tensor, " c"]

    @classmethod
    def of(
        cls,
        left: Float[Tensor, " r_a"],
        right: Float[Tensor, " r_b"],
        cross: Float[Tensor, "r_a r_b"],
        regularisation: float,
        most: int,
    ) -> Self:
        """At most `most` directions from the variances of both sides, whose coordinates are uncorrelated, and their cross-covariance.

        `regularisation` times their mean is added to the variances. The more is added the less the directions are whitened; towards infinity
        they are those of the largest covariance (partial least squares).

        >>> CanonicalCorrelation.of(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), torch.diag(torch.tensor([0.5, 1.0])), 0.0, 2).correlations
        tensor([0.5000, 0.5000])
        """
        ours, theirs = _root_inverse(left, regularisation), _root_inverse(right, regularisation)
        u, correlations, v = torch.linalg.svd(ours[:, None] * cross * theirs, full_matrices=False)
        kept = min(most, len(correlations))
        return cls(ours[:, None] * u[:, :kept], theirs[:, None] * v[:kept].T, correlations[:kept])

    def weighted(self) -> tuple[Float[Tensor, "r_a c"], Float[Tensor, "r_b c"]]:
        """The directions of both sides times the square roots of their correlations: an inner product of such coordinates counts each direction
        by how much the two modalities share in it."""
        weights = self.correlations.clamp_min(0).sqrt()
        return self.left * weights, self.right * weights


def _root_inverse(variances: Float[Tensor, " r"], regularisation: float) -> Float[Tensor, " r"]:
    mean = variances.clamp_min(0).mean().clamp_min(1e-30)
    # Without regularisation, directions in which nothing varies stay out instead of dividing by zero.
    found = variances + regularisation * mean
    return torch.where(found > 1e-12 * mean, found.clamp_min(1e-300).rsqrt(), 0.0)
