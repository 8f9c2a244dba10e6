"""Exact EM for PPCA with missing blocks: parameters and per-pattern statistics in, better parameters and their likelihood out.

Model (arXiv 2511.12034): z^m = W^m beta + mu^m + noise, beta ~ N(0, I_q), noise ~ N(0, s_m^2 I). Letters used below, for a
pattern with n items: S second moment and s sum of its items, W~ = W / s^2 (rows of the observed modalities), K = I + W'W~, V =
K^-1. Nothing in here grows with the number of items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.linalg.positive_definite import precision_root
from calmrl_lab.ppca.statistics import PatternStatistics, Statistics
from calmrl_lab.runtime.progress import tracked

NoiseKind: TypeAlias = Literal["per-modality", "shared"]

# Noise variances stay above this share of a modality's variance, above rounding of its squares and values, and above zero.
_RELATIVE_FLOOR = 1e-9
_CANCELLATION_FLOOR = 1e-12
_ROUNDING_FLOOR = 1e-28
_ABSOLUTE_FLOOR = 1e-150


@dataclass
class Parameters:
    """Stacked parameters: `weights` [D, q], `mean` [D] in the coordinates of the statistics, `noise` [k] variances."""

    weights: Float[Tensor, "d q"]
    mean: Float[Tensor, " d"]
    noise: Float[Tensor, " k"]


@dataclass
class Totals:
    """Sums over all items that show modality m: what EM needs beside the moments themselves, computed once a fit."""

    count: Float[Tensor, " k"]
    weight: Float[Tensor, " k"]
    total: list[Float[Tensor, " d"]]
    # Sum of squares about the mean, over items and coordinates.
    scatter: Float[Tensor, " k"]
    floor: Float[Tensor, " k"]
    # Whether the modality varies by more than rounding. One that does not says nothing about beta: its W is 0.
    varies: Bool[Tensor, " k"]
    # Sums of squares about the shift, an entry an observed modality, for every pattern.
    squares: dict[tuple[int, ...], Float[Tensor, " o"]]
    # Dimensions of the modalities, also where the coordinates of the statistics are fewer (`calmrl_lab.ppca.row_span`).
    sizes: Float[Tensor, " k"]

    @classmethod
    def of(cls, statistics: Statistics) -> Totals:
        dims, device = statistics.dims, statistics.device
        k = len(dims)
        count, weight = torch.zeros(2, k, dtype=torch.float64, device=device)
        total = [torch.zeros(d, dtype=torch.float64, device=device) for d in dims]
        square = [torch.zeros(d, dtype=torch.float64, device=device) for d in dims]
        squares = {}
        for observed, sums in statistics.patterns.items():
            widths = [dims[j] for j in observed]
            parts = sums.diagonal().split(widths)
            squares[observed] = torch.stack([part.sum() for part in parts])
            for j, first, second in zip(observed, sums.total.split(widths), parts, strict=True):
                count[j] += sums.count
                weight[j] += sums.weight
                total[j] += first
                square[j] += second
        items = torch.where(weight > 0, weight, 1.0)
        scatter = torch.stack([(sq - t.square() / n).clamp(min=0).sum() for sq, t, n in zip(square, total, items, strict=True)])
        whole = torch.tensor(statistics.sizes, dtype=torch.float64, device=device)
        size = items * whole
        # The scatter is a difference: what is left of a constant modality is rounding of the squares it came from.
        lost = _CANCELLATION_FLOOR * torch.stack([sq.sum() for sq in square])
        raw = torch.stack([_ROUNDING_FLOOR * c.square().mean() for c in statistics.shift])
        floor = torch.maximum(torch.maximum(_RELATIVE_FLOOR * scatter, lost) / size, raw).clamp(min=_ABSOLUTE_FLOOR)
        return cls(count, weight, total, scatter, floor, scatter > torch.maximum(lost, raw * size), squares, whole)


@dataclass
class Expectation:
    """Sums of posterior moments over the items that show each modality, and the log-likelihood of all items."""

    latent: Float[Tensor, "k q"]
    latent_square: Float[Tensor, "k q q"]
    cross: Float[Tensor, "d q"]
    log_likelihood: float


def expect(statistics: Statistics, totals: Totals, parameters: Parameters) -> Expectation:
    """The E-step: sums of E[beta], E[beta beta'] and z E[beta]' a modality, and the observed-data log-likelihood of
    `parameters`."""
    dims = statistics.dims
    k, q = len(dims), parameters.weights.shape[1]
    noise = parameters.noise
    weights, means = parameters.weights.split(dims), parameters.mean.split(dims)
    scaled = [w / s for w, s in zip(weights, noise, strict=True)]
    grams = torch.stack([w.T @ w_scaled for w, w_scaled in zip(weights, scaled, strict=True)])
    eye = torch.eye(q, dtype=torch.float64, device=statistics.device)

    latent = eye.new_zeros(k, q)
    latent_square = eye.new_zeros(k, q, q)
    cross = [eye.new_zeros(d, q) for d in dims]
    log_likelihood = eye.new_zeros(())
    for sums in statistics.patterns.values():
        observed, n, w = list(sums.observed), sums.count, sums.weight
        sizes = [dims[j] for j in observed]
        factor = _factor(eye + grams[observed].sum(dim=0), observed, weights, noise)
        posterior = torch.cholesky_inverse(factor)
        projection = torch.cat([scaled[j] for j in observed])
        mean = torch.cat([means[j] for j in observed])
        g, h = projection.T @ mean, projection.T @ sums.total
        squared, mapped = _moments(sums, projection, posterior)
        # Sums of b b' and of z b' over items, b = W~'(z - mu): the mean is taken out of the moments, not of rows.
        outer_b = squared - torch.outer(h, g) - torch.outer(g, h) + w * torch.outer(g, g)
        mapped.addr_(sums.total, posterior @ g, alpha=-1)
        half = posterior @ outer_b
        latent[observed] += posterior @ (h - w * g)
        second = torch.addmm(n * posterior, half, posterior)
        for j, part in zip(observed, mapped.split(sizes), strict=True):
            latent_square[j] += second
            cross[j] += part
        log_likelihood -= 0.5 * (2 * n * factor.diagonal().log().sum() - half.diagonal().sum())
        for j, square, total in zip(observed, totals.squares[sums.observed], sums.total.split(sizes), strict=True):
            scatter = square - 2 * means[j] @ total + w * means[j] @ means[j]
            log_likelihood -= 0.5 * (n * totals.sizes[j] * torch.log(2 * math.pi * noise[j]) + scatter / noise[j])
    return Expectation(latent, latent_square, torch.cat(cross), float(log_likelihood))


def _moments(
    sums: PatternStatistics, projection: Float[Tensor, "d q"], posterior: Float[Tensor, "q q"]
) -> tuple[Float[Tensor, "q q"], Float[Tensor, "d q"]]:
    """W~'S W~ and S W~ V; through the rows where a pattern holds them, which costs n q (D + q) instead of D q^2."""
    if sums.moment is not None or not sums.rows:
        product = sums.times(projection)
        return projection.T @ product, product @ posterior
    scores = [rows @ projection for rows in sums.rows]
    squared = sum((u.T @ u for u in scores), torch.zeros_like(posterior))
    mapped = sum((rows.T @ (u @ posterior) for rows, u in zip(sums.rows, scores, strict=True)), torch.zeros_like(projection))
    return squared, mapped


def _factor(
    precision: Float[Tensor, "q q"], observed: Sequence[int], weights: Sequence[Tensor], noise: Float[Tensor, " k"]
) -> Float[Tensor, "q q"]:
    factor, failed = torch.linalg.cholesky_ex(precision)
    return precision_root([weights[j] for j in observed], [noise[j] for j in observed]) if bool(failed) else factor


def maximise(
    dims: tuple[int, ...],
    totals: Totals,
    expected: Expectation,
    noise: NoiseKind = "per-modality",
    ridge: float = 0.0,
    columns: Sequence[Bool[Tensor, " q"]] | None = None,
) -> Parameters:
    """The M-step: the exact joint maximiser over W, mu and s^2 of the expected log-likelihood (closed form, monotone).

    W and mu come out of one regression of z on [beta; 1], so no order of updates has to be argued about. `ridge` > 0 puts a
    Gaussian prior N(0, s_m^2 / ridge) on every entry of W (MAP instead of maximum likelihood; what never falls is then the
    log-likelihood plus `log_prior`). `columns` says which latent dimensions a modality depends on; by default all. Entries of W
    that it rules out are zero and have no prior.
    """
    weights, means, residuals = [], [], []
    q = expected.latent.shape[1]
    eye = torch.eye(q, dtype=torch.float64, device=expected.latent.device)
    for j, cross in enumerate(expected.cross.split(dims)):
        n, total, latent = totals.weight[j], totals.total[j], expected.latent[j]
        # Regression about the means: the same answer as with a column of ones, and better conditioned.
        square = expected.latent_square[j] - torch.outer(latent, latent) / n + ridge * eye
        target = cross - torch.outer(total, latent) / n
        if columns is None:
            solved = torch.cholesky_solve(target.T, _root(square)).T
        else:
            used = columns[j]
            solved = torch.zeros_like(target)
            solved[:, used] = torch.cholesky_solve(target[:, used].T, _root(square[used][:, used])).T
        if not bool(totals.varies[j]):
            solved = torch.zeros_like(solved)
        weights.append(solved)
        means.append((total - solved @ latent) / n)
        residuals.append(totals.scatter[j] - (solved * target).sum())
    sizes = totals.sizes
    freedom = totals.count * sizes if ridge == 0 else (totals.count + _used(columns, totals.count, q)) * sizes
    residual = torch.stack(residuals)
    variance, floor = residual / freedom, totals.floor
    if noise == "shared":
        variance = (residual.sum() / freedom.sum()).expand_as(variance)
        floor = floor.max().expand_as(floor)
    return Parameters(torch.cat(weights), torch.cat(means), torch.maximum(variance, floor))


def log_prior(
    statistics: Statistics, parameters: Parameters, ridge: float, columns: Sequence[Bool[Tensor, " q"]] | None = None
) -> float:
    """Log-density (nats) of W under the prior of `maximise`; 0 without one."""
    if ridge == 0:
        return 0.0
    sizes = torch.tensor(statistics.sizes, dtype=torch.float64, device=parameters.noise.device)
    entries = _used(columns, parameters.noise, parameters.weights.shape[1]) * sizes
    square = torch.stack([part.square().sum() for part in parameters.weights.split(statistics.dims)])
    variance = parameters.noise / ridge
    return float(-0.5 * (entries * torch.log(2 * math.pi * variance) + square / variance).sum())


def _used(columns: Sequence[Bool[Tensor, " q"]] | None, like: Float[Tensor, " k"], q: int) -> Float[Tensor, " k"]:
    """How many latent dimensions every modality depends on."""
    return torch.full_like(like, q) if columns is None else torch.stack([used.sum() for used in columns]).to(like)


def _root(square: Float[Tensor, "q q"]) -> Float[Tensor, "q q"]:
    """Cholesky factor of a matrix that is positive definite in exact arithmetic; rounding may have undone that."""
    factor, failed = torch.linalg.cholesky_ex(square)
    if not bool(failed):
        return factor
    if not bool(torch.isfinite(square).all()):
        raise CalmrlError(
            "EM has run out of floating-point range: some modality varies too little, or on too large a scale, beside the others",
            hint="scale every modality to about unit norm first",
        )
    # Directions that rounding has lost carry nothing either way.
    values, vectors = torch.linalg.eigh((square + square.T) / 2)
    values = values.clamp(min=float(values[-1].clamp(min=1e-300)) * 1e-13)
    return torch.linalg.cholesky((vectors * values) @ vectors.T + 1e-13 * values[-1] * torch.eye(len(square)).to(square))


def iterate(
    statistics: Statistics,
    totals: Totals,
    parameters: Parameters,
    iterations: int,
    noise: NoiseKind = "per-modality",
    ridge: float = 0.0,
    accelerate: bool = False,
    columns: Sequence[Bool[Tensor, " q"]] | None = None,
    tolerance: float = 0.0,
) -> tuple[Parameters, list[float]]:
    """`iterations` EM steps, and the log-likelihood of the parameters that entered each; fewer once a step has gained less than
    `tolerance` in total. What has to gain is the log-likelihood, with a `ridge` the log-posterior.

    With `accelerate`, every third step starts from where the last two point to (SQUAREM, Varadhan and Roland 2008, scheme S3,
    over W, mu and log s^2) if that is no worse; an attempt that fails costs one more E-step.
    """

    def goal(of: Parameters, expected: Expectation) -> float:
        return expected.log_likelihood + log_prior(statistics, of, ridge, columns)

    likelihoods: list[float] = []
    reached: list[float] = []
    path = [parameters]
    for _ in tracked(range(iterations), "EM", unit="iterations"):
        expected = None
        if accelerate and len(path) == 3:
            expected = expect(statistics, totals, leap := _leap(path[0], path[1], path[2], totals.floor))
            if goal(leap, expected) >= reached[-1]:
                path = [leap]
            else:
                expected, path = None, path[-1:]
        expected = expected or expect(statistics, totals, path[-1])
        likelihoods.append(expected.log_likelihood)
        reached.append(goal(path[-1], expected))
        if tolerance > 0 and len(reached) > 1 and reached[-1] - reached[-2] < tolerance:
            # The parameters at hand are returned, so this likelihood is not that of a step.
            likelihoods.pop()
            break
        path.append(maximise(statistics.dims, totals, expected, noise, ridge, columns))
        path = path if accelerate else path[-1:]
    return path[-1], likelihoods


def _leap(a: Parameters, b: Parameters, c: Parameters, floor: Float[Tensor, " k"]) -> Parameters:
    """The point that three successive iterates aim at, by the step length that suits their curvature."""
    points = [torch.cat([p.weights.flatten(), p.mean, p.noise.log()]) for p in (a, b, c)]
    change = points[1] - points[0]
    bend = points[2] - points[1] - change
    length = (change.norm() / bend.norm().clamp(min=1e-300)).clamp(min=1.0, max=1e6)
    leap = points[0] + 2 * length * change + length**2 * bend
    weights, mean, noise = leap.split([a.weights.numel(), a.mean.numel(), a.noise.numel()])
    return Parameters(weights.reshape(a.weights.shape), mean, torch.maximum(noise.exp(), floor))
