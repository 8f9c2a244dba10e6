"""Where EM starts: block PPCA of pairwise or complete-case moments, from the same statistics that EM iterates on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.ppca.em import NoiseKind, Parameters, Totals, expect
from calmrl_lab.ppca.statistics import PatternStatistics, Statistics, add_gram, mirror_lower, thin_product

# Up to this many coordinates a full symmetric eigendecomposition is quicker than an iterative one.
_DENSE_UP_TO = 384
_ROUNDS = 6
# Rounds end once no noise variance moves by more than this share.
_SETTLED = 1e-3
_FIRST_SWEEPS, _LATER_SWEEPS = 6, 2
_EXTRA = 8
# Components may explain at most this share of a modality at the start; more is a sign of moments that contradict each other.
_MOST_EXPLAINED = 1 - 1e-6
_ROWS_AT_ONCE = 4096


def pairwise_start(
    statistics: Statistics, totals: Totals, latent_dim: int, noise: NoiseKind = "per-modality", rounds: int = _ROUNDS
) -> Parameters:
    """PPCA of the pairwise covariance: blocks from the items that show both modalities, one noise variance per modality.

    Blocks from different items may contradict each other (the matrix is then indefinite) where items are few beside the
    dimensions. Where that shows, the start from the damped covariance, which is always positive semi-definite, is tried too,
    and the more likely one is taken. Deterministic; components are in descending order of strength. Components and noise are found in turn, in
    at most so many `rounds`.
    """
    covariance, unknown = pairwise_covariance(statistics, totals)
    start, sound = block_ppca(covariance, unknown, statistics, totals, latent_dim, noise, rounds)
    if sound:
        return start
    damped, _ = block_ppca(_damped(covariance, statistics), [], statistics, totals, latent_dim, noise, rounds)
    return max((start, damped), key=lambda parameters: expect(statistics, totals, parameters).log_likelihood)


def narrowed(start: Parameters, latent_dim: int, statistics: Statistics, totals: Totals, noise: NoiseKind) -> Parameters:
    """The first `latent_dim` components of a start for the same statistics, whose noise takes up what the others explained."""
    explained = torch.stack([part.square().sum() for part in start.weights[:, latent_dim:].split(statistics.dims)])
    more = explained / totals.sizes if noise == "per-modality" else explained.sum() / totals.sizes.sum()
    return Parameters(start.weights[:, :latent_dim].clone(), start.mean.clone(), start.noise + more)


def complete_case_start(
    statistics: Statistics, totals: Totals, latent_dim: int, noise: NoiseKind = "per-modality"
) -> Parameters:
    """PPCA of the complete items alone: their mean and covariance, which contradict nothing, and a closed form if noise is shared.

    Raises CalmrlError with fewer than two complete items.
    """
    sums = statistics.patterns.get(tuple(range(len(statistics.dims))))
    if sums is None or sums.count < 2:
        raise CalmrlError(
            f"a start from complete items needs at least 2 of them, and there are {0 if sums is None else sums.count:g}",
            hint="use initialisation 'pairwise'",
        )
    mean = sums.total / sums.weight
    covariance = sums.dense() / sums.weight - torch.outer(mean, mean)
    start, _ = block_ppca(covariance, [], statistics, totals, latent_dim, noise)
    return Parameters(start.weights, mean, start.noise)


def block_ppca(
    covariance: Float[Tensor, "d d"],
    unknown: list[tuple[slice, slice]],
    statistics: Statistics,
    totals: Totals,
    latent_dim: int,
    noise: NoiseKind,
    rounds: int = _ROUNDS,
) -> tuple[Parameters, bool]:
    """PPCA of a known covariance about the observed means, and whether the components stayed within its diagonal.

    With one noise variance for all coordinates the maximum is a closed form (Tipping and Bishop 1999, eq. 7 and 8); with one a
    modality it is alternated: top eigenvectors of the noise-whitened covariance, then the noise that the components leave over.
    Blocks in `unknown` are filled with what the components say, so that chains of co-observation carry over.
    """
    dims, device = statistics.dims, statistics.device
    sizes = totals.sizes
    repeats = torch.tensor(dims, device=device)
    spread = torch.stack([block.sum() for block in covariance.diagonal().split(dims)])
    variance = torch.maximum(spread / sizes, totals.floor)
    if noise == "shared":
        variance = torch.maximum(spread.sum() / sizes.sum(), totals.floor.max()).expand_as(variance)
    basis: Tensor | None = None
    single = covariance.float()
    weights = covariance.new_zeros(len(covariance), latent_dim)
    sound = True
    for turn in range(rounds):
        scale = variance.sqrt().repeat_interleave(repeats)
        if turn and unknown:
            for rows, columns in unknown:
                block = weights[rows] @ weights[columns].T
                covariance[rows, columns], covariance[columns, rows] = block, block.T
            single = covariance.float()
        values, basis = top_eigenvectors(covariance, single, 1 / scale, latent_dim, basis)
        values, before = values[:latent_dim], variance
        if noise == "shared":
            # What the components leave over, a coordinate that is left; whitening was by a number, so that directions stand.
            left = (spread.sum() - variance[0] * values.sum()) / (sizes.sum() - latent_dim)
            left = torch.maximum(left, totals.floor.max())
            values, variance = values * (variance[0] / left), left.expand_as(variance)
            scale = variance.sqrt().repeat_interleave(repeats)
        # A component of no strength would stay at zero under EM for ever; a weak one can grow.
        strength = (values - 1).clamp(min=1e-3).sqrt()
        weights = scale.unsqueeze(1) * basis[:, :latent_dim] * strength
        explained = torch.stack([block.square().sum() for block in weights.split(dims)])
        excess = (explained / (_MOST_EXPLAINED * spread).clamp(min=1e-300)).clamp(min=1.0)
        sound = sound and bool((excess == 1).all())
        weights = weights / excess.sqrt().repeat_interleave(repeats).unsqueeze(1)
        if noise == "per-modality":
            variance = torch.maximum((spread - explained / excess) / sizes, totals.floor)
        if not unknown and bool(((variance / before - 1).abs() < _SETTLED).all()):
            break
    means = torch.cat([total / n for total, n in zip(totals.total, totals.weight, strict=True)])
    return Parameters(weights, means, variance.clone()), sound


def pairwise_covariance(statistics: Statistics, totals: Totals) -> tuple[Float[Tensor, "d d"], list[tuple[slice, slice]]]:
    """Covariance with every block from the items that show both its modalities, and the blocks (zero) that no item shows.

    Blocks are about the available-case means, so that all of them speak of the same centre. Need not be positive semi-definite.
    """
    dims = statistics.dims
    place = _places(dims)
    size = sum(dims)
    # On and below the diagonal blocks only, until the end.
    moment = torch.zeros(size, size, dtype=torch.float64, device=statistics.device)
    for sums in statistics.patterns.values():
        if sums.moment is None:
            continue
        where = [place[j] for j in sums.observed]
        parts = _places([dims[j] for j in sums.observed])
        for (b, columns), (a, rows) in itertools.combinations_with_replacement(zip(parts, where, strict=True), 2):
            moment[rows, columns] += sums.moment[a, b]
    for block in _zero_filled(list(statistics.patterns.values()), dims, statistics.device):
        add_gram(moment, block)

    means = [total / n for total, n in zip(totals.total, totals.weight, strict=True)]
    pairs = torch.from_numpy(statistics.co_observed()).to(moment)
    unknown = []
    for j, i in itertools.combinations_with_replacement(range(len(dims)), 2):
        n = pairs[i, j]
        if n == 0:
            unknown.append((place[j], place[i]))
            continue
        together = [sums for sums in statistics.patterns.values() if i in sums.observed and j in sums.observed]
        total_i = torch.stack([_part(sums, i, dims) for sums in together]).sum(dim=0)
        total_j = torch.stack([_part(sums, j, dims) for sums in together]).sum(dim=0)
        part = moment[place[i], place[j]]
        part.addr_(total_i, means[j], alpha=-1).addr_(means[i], total_j - n * means[j], alpha=-1)
        part /= n
    mirror_lower(moment)
    return moment, unknown


def _damped(covariance: Float[Tensor, "d d"], statistics: Statistics) -> Float[Tensor, "d d"]:
    """Blocks times n_ij / sqrt(n_i n_j): the second moment of zero-filled items with unit-weight diagonals, hence positive
    semi-definite."""
    pairs = torch.from_numpy(statistics.co_observed()).to(covariance)
    own = pairs.diagonal().sqrt()
    factor = pairs / torch.outer(own, own)
    repeats = torch.tensor(statistics.dims, device=covariance.device)
    return covariance * factor.repeat_interleave(repeats, dim=0).repeat_interleave(repeats, dim=1)


def _zero_filled(
    patterns: list[PatternStatistics], dims: tuple[int, ...], device: torch.device
) -> Iterator[Float[Tensor, "n d"]]:
    """The rows held by `patterns` over all coordinates, a few thousand at a time: one product instead of one per pattern."""
    place = _places(dims)
    held = [(sums, rows) for sums in patterns for rows in sums.rows]
    while held:
        taken, count = [], 0
        while held and (count == 0 or count + len(held[-1][1]) <= _ROWS_AT_ONCE):
            taken.append(held.pop())
            count += len(taken[-1][1])
        block = torch.zeros(count, sum(dims), dtype=torch.float64, device=device)
        start = 0
        for sums, rows in taken:
            for j, part in zip(sums.observed, rows.split([dims[j] for j in sums.observed], dim=1), strict=True):
                block[start : start + len(rows), place[j]] = part
            start += len(rows)
        yield block


def _places(sizes: tuple[int, ...] | list[int]) -> list[slice]:
    return [slice(a, b) for a, b in itertools.pairwise(itertools.accumulate(sizes, initial=0))]


def _part(sums: PatternStatistics, index: int, dims: tuple[int, ...]) -> Float[Tensor, " d"]:
    return sums.total.split([dims[j] for j in sums.observed])[sums.observed.index(index)]


def top_eigenvectors(
    matrix: Float[Tensor, "d d"],
    single: Float[Tensor, "d d"],
    scale: Float[Tensor, " d"],
    count: int,
    start: Float[Tensor, "d b"] | None = None,
) -> tuple[Float[Tensor, " b"], Float[Tensor, "d b"]]:
    """The largest eigenvalues (descending) of diag(scale) matrix diag(scale), and their eigenvectors: at least `count` of them.

    `single` is `matrix` in float32; pass the eigenvectors on as `start` of a similar problem. Small matrices by a full
    decomposition; large ones by block power iteration with Rayleigh-Ritz, whose products are in float32: all that a start for
    EM needs, at 2 D^2 (q + 8) flops a sweep instead of about 4 D^3.
    """
    size = len(matrix)
    if size <= _DENSE_UP_TO or count + _EXTRA > size // 4:
        values, vectors = torch.linalg.eigh(matrix * torch.outer(scale, scale))
        return values.flip(0)[:count], vectors.flip(1)[:, :count]
    sweeps = _LATER_SWEEPS
    if start is None:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(size, count + _EXTRA, generator=generator, dtype=torch.float64).to(matrix)
        sweeps = _FIRST_SWEEPS
    around = scale.unsqueeze(1)

    def product(basis: Tensor) -> Tensor:
        return around * thin_product(single, (around * basis).float()).double()

    basis = start
    for _ in range(sweeps):
        basis = torch.linalg.qr(product(basis)).Q
    values, rotation = torch.linalg.eigh(basis.T @ product(basis))
    return values.flip(0), basis @ rotation.flip(1)
