"""Kernel principal components: features of one modality as coordinates in which closeness, not only direction, counts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.linalg.whitened_pca import standardiser

# Components of more landmarks are a better approximation of all items' and cost their cube once.
LANDMARKS = 1000
COMPONENTS = 400
# Components weaker than this share of the strongest are rounding.
_RANK = 1e-6
_BLOCK = 8192


@dataclass(frozen=True)
class KernelPCA:
    """x -> k(x) @ projection - offset with k(x)_l = exp(-|(x - centre) / scale - landmarks_l|^2), l = 1..L.

    `centre`, `scale` [d], `landmarks` [L, d], `projection` [L, r], `offset` [r], float32. The coordinates of the landmarks have mean zero and
    are uncorrelated, the widest first (kernel principal component analysis; Schoelkopf, Smola and Mueller, Neural Computation 1998).
    """

    centre: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    landmarks: Float[Tensor, "l d"]
    projection: Float[Tensor, "l r"]
    offset: Float[Tensor, " r"]

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"], components: int = COMPONENTS) -> Self:
        """From at least two `rows` [n, d]: at most 1,000 of them, evenly spread over their order, are landmarks; computed in float64.

        Features are standardised (`WhitenedPCA.of`); the squared width of the kernel is the median squared distance between landmarks. At most
        `components` coordinates, none of them mere rounding.
        """
        rows = rows.double()
        centre, scale = standardiser(rows)
        chosen = torch.linspace(0, len(rows) - 1, min(len(rows), LANDMARKS), dtype=torch.float64).round().long()
        landmarks = (rows[chosen] - centre) / scale
        squares = _squared_distances(landmarks, landmarks)
        apart = squares[squares > 1e-9 * squares.max().clamp_min(1e-300)]
        width = float(apart.median()) if len(apart) else 1.0
        kernel = (-squares / width).exp()
        mean = kernel.mean(dim=0)
        values, vectors = torch.linalg.eigh(kernel - mean - mean.unsqueeze(1) + mean.mean())
        values, vectors = values.flip(0), vectors.flip(1)
        kept = max(1, min(components, int((values > _RANK * values[0].clamp_min(1e-9)).sum())))
        # Where all landmarks are alike there is nothing to tell apart, and the only coordinate is zero.
        projection = vectors[:, :kept] * torch.where(values[:kept] > 1e-9, values[:kept].clamp_min(1e-9).rsqrt(), 0.0)
        parts = (centre, scale * width**0.5, landmarks / width**0.5, projection, mean @ projection)
        return cls(*(part.float().contiguous() for part in parts))

    @property
    def inputs(self) -> int:
        """d."""
        return len(self.centre)

    @property
    def dim(self) -> int:
        """r."""
        return self.projection.shape[1]

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n r"]:
        """Coordinates, float32, in blocks whose [8192, L] kernel is all the memory it takes."""
        return torch.cat([self._block(block) for block in features.float().split(_BLOCK)])

    def _block(self, features: Tensor) -> Tensor:
        squares = _squared_distances((features - self.centre) / self.scale, self.landmarks)
        return squares.neg_().exp_() @ self.projection - self.offset

    def to(self, device: torch.device | str) -> Self:
        """The same map on another device."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))


def _squared_distances(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    ours, theirs = a.square().sum(dim=1, keepdim=True), b.square().sum(dim=1)
    # In place: a [n, L] matrix is much larger than the rows.
    return (ours + theirs).addmm_(a, b.T, alpha=-2).clamp_min_(0)
