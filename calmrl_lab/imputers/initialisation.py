"""Where EM starts: block PPCA of available-case moments, assembled from the same statistics that EM iterates on."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.imputers.em import NoiseKind, Parameters, Totals
from calmrl_lab.imputers.statistics import Statistics

# Up to this many coordinates a full symmetric eigendecomposition is quicker than an iterative one.
_DENSE_UP_TO = 384
_ROUNDS = 6
_FIRST_SWEEPS, _LATER_SWEEPS = 8, 2
_EXTRA = 8


def pairwise_start(statistics: Statistics, totals: Totals, latent_dim: int, noise: NoiseKind = "per-modality") -> Parameters:
    """PPCA of the pairwise covariance: blocks from the items that show both modalities, one noise variance a modality.

    With one noise variance for all coordinates the maximum is a closed form (Tipping and Bishop 1999, eq. 7 and 8); with one a
    modality it is alternated: top eigenvectors of the noise-whitened covariance, then the noise that the components leave over.
    Blocks of modalities never seen together are unknown and filled with what the components say, so chains of co-observation
    carry over. Deterministic.
    """
    dims, device = statistics.dims, statistics.device
    covariance, unknown = pairwise_covariance(statistics, totals)
    sizes = torch.tensor(dims, dtype=torch.float64, device=device)
    spread = torch.stack([block.sum() for block in covariance.diagonal().split(dims)])
    floor = torch.maximum(totals.floor, 1e-6 * spread / sizes)
    variance = torch.maximum(spread / sizes, floor)
    repeats = torch.tensor(dims, device=device)
    basis: Tensor | None = None
    weights = covariance.new_zeros(len(covariance), latent_dim)
    for turn in range(_ROUNDS):
        scale = variance.sqrt().repeat_interleave(repeats)
        whitened = covariance / torch.outer(scale, scale)
        if turn and unknown:
            whitened_weights = weights / scale.unsqueeze(1)
            for rows, columns in unknown:
                block = whitened_weights[rows] @ whitened_weights[columns].T
                whitened[rows, columns], whitened[columns, rows] = block, block.T
        values, basis = top_eigenvectors(whitened, latent_dim, basis)
        # A component of no strength would stay at zero under EM for ever; a weak one can grow.
        strength = (values[:latent_dim] - 1).clamp(min=1e-3).sqrt()
        weights = scale.unsqueeze(1) * basis[:, :latent_dim] * strength
        explained = torch.stack([block.square().sum() for block in weights.split(dims)])
        variance = torch.maximum((spread - explained) / sizes, floor)
        if noise == "shared":
            left = (spread.sum() - explained.sum()) / sizes.sum()
            variance = torch.maximum(left, floor.max()).expand_as(variance)
    means = torch.cat([total / n for total, n in zip(totals.total, totals.count, strict=True)])
    return Parameters(weights, means, variance.clone())


def pairwise_covariance(statistics: Statistics, totals: Totals) -> tuple[Float[Tensor, "d d"], list[tuple[slice, slice]]]:
    """Covariance with every block from the items that show both its modalities, and the blocks (zero) that no item shows.

    Need not be positive semi-definite.
    """
    dims = statistics.dims
    ends = torch.tensor([0, *dims]).cumsum(0).tolist()
    place = [slice(a, b) for a, b in itertools.pairwise(ends)]
    size = sum(dims)
    moment = torch.zeros(size, size, dtype=torch.float64, device=statistics.device)
    pairs = torch.from_numpy(statistics.co_observed()).to(moment)
    means = [total / n for total, n in zip(totals.total, totals.count, strict=True)]
    for sums in statistics.patterns.values():
        parts = torch.tensor([0, *(dims[j] for j in sums.observed)]).cumsum(0).tolist()
        dense = sums.dense()
        mean = torch.cat([means[j] for j in sums.observed])
        # About the available-case means, so that all blocks speak of the same centre.
        dense -= torch.outer(sums.total, mean) + torch.outer(mean, sums.total) - sums.count * torch.outer(mean, mean)
        for a, i in enumerate(sums.observed):
            for b, j in enumerate(sums.observed):
                moment[place[i], place[j]] += dense[parts[a] : parts[a + 1], parts[b] : parts[b + 1]]
    unknown = []
    for i in range(len(dims)):
        for j in range(len(dims)):
            if pairs[i, j] > 0:
                moment[place[i], place[j]] /= pairs[i, j]
            elif i < j:
                unknown.append((place[i], place[j]))
    return (moment + moment.T) / 2, unknown


def top_eigenvectors(
    matrix: Float[Tensor, "d d"], count: int, start: Float[Tensor, "d b"] | None = None
) -> tuple[Float[Tensor, " b"], Float[Tensor, "d b"]]:
    """The largest eigenvalues (descending) and their eigenvectors, at least `count` of them; pass the result on as `start`.

    Small matrices by a full decomposition; large ones by block power iteration with Rayleigh-Ritz, which is accurate to what a
    start for EM needs, at 2 D^2 (q + 8) flops a sweep instead of about 4 D^3.
    """
    size = len(matrix)
    if size <= _DENSE_UP_TO or count + _EXTRA > size // 4:
        values, vectors = torch.linalg.eigh(matrix)
        return values.flip(0)[:count], vectors.flip(1)[:, :count]
    sweeps = _LATER_SWEEPS
    if start is None:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(size, count + _EXTRA, generator=generator, dtype=torch.float64).to(matrix)
        sweeps = _FIRST_SWEEPS
    # The pairwise covariance may have large negative eigenvalues; shifted by their bound they cannot win the power iteration.
    basis = torch.linalg.qr(start).Q
    for _ in range(sweeps):
        basis = torch.linalg.qr(matrix @ basis).Q
    values, rotation = torch.linalg.eigh(basis.T @ matrix @ basis)
    return values.flip(0), basis @ rotation.flip(1)
