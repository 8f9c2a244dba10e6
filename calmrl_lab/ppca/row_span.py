"""Statistics of few items with many dimensions, in the coordinates of the space that their rows span.

EM for PPCA never leaves that space: weights and means are sums of rows, and what is left of the noise variance is a number per modality.
So with n items and d dimensions it needs n x n matrices in place of d x d ones, and gives the same model.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.ppca.statistics import Statistics

# With fewer dimensions than this all together, D x D matrices are small.
_DIMENSIONS = 4096
# The span is used where it has at most this share of the dimensions.
_SHARE = 0.25
# Directions beyond the rows, so that a latent vector may be longer than the rows have ranks.
_SPARE = 8


def row_span(statistics: Statistics, latent_dim: int) -> list[Float[Tensor, "d r"]] | None:
    """Orthonormal bases (k of [d_m, r_m]) of the rows of each modality and a few directions more; None where they would save nothing.

    That is where there are few dimensions or many items, where a pattern has given up its rows, and where `latent_dim` is not below the
    sum of the r_m.
    """
    dims = statistics.dims
    if statistics.bases is not None or sum(dims) < _DIMENSIONS:
        return None
    if any(sums.moment is not None for sums in statistics.patterns.values()):
        return None
    counts = [
        sum(sum(map(len, sums.rows)) for observed, sums in statistics.patterns.items() if j in observed)
        for j in range(len(dims))
    ]
    ranks = [min(d, count + _SPARE) for d, count in zip(dims, counts, strict=True)]
    if sum(ranks) > _SHARE * sum(dims) or latent_dim >= sum(ranks):
        return None
    return [_basis(statistics, j, rank) for j, rank in enumerate(ranks)]


def _basis(statistics: Statistics, index: int, rank: int) -> Float[Tensor, "d r"]:
    dims = statistics.dims
    rows = [
        block.split([dims[j] for j in observed], dim=1)[observed.index(index)]
        for observed, sums in statistics.patterns.items()
        if index in observed
        for block in sums.rows
    ]
    spare = max(0, rank - sum(map(len, rows)))
    generator = torch.Generator().manual_seed(index)
    more = torch.randn(spare, dims[index], generator=generator, dtype=torch.float64).to(statistics.device)
    return torch.linalg.qr(torch.cat([*rows, more]).T).Q
