"""How well PPCA parameters impute items they were not fitted on, from the items' statistics alone: no pass over rows.

A conditional mean is linear in what is observed, so its squared error is a sum over second moments. Everything is kept in the
form (energy, cross, power), from which the error at any gain c of reference + c (conditional mean - reference) follows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.data.patterns import Observations
from calmrl_lab.linalg.positive_definite import inverse
from calmrl_lab.ppca.combination import AffineMap
from calmrl_lab.ppca.em import Parameters, Totals, expect
from calmrl_lab.ppca.statistics import PatternStatistics, Statistics, observed_means

# What is observed, and the missing modality that is to be filled from it.
Target: TypeAlias = tuple[tuple[int, ...], int]


@dataclass(frozen=True)
class Agreement:
    """Sums over items, with x = truth - reference and p = conditional mean - reference: of 1, x'x, x'p and p'p."""

    count: float = 0.0
    energy: float = 0.0
    cross: float = 0.0
    power: float = 0.0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.count + other.count, self.energy + other.energy, self.cross + other.cross, self.power + other.power
        )

    def scaled(self, factor: float) -> Agreement:
        """Every item counted `factor` times."""
        return Agreement(self.count * factor, self.energy * factor, self.cross * factor, self.power * factor)

    def error(self, gain: float = 1.0) -> float:
        """Sum of squared errors when the deviation from the reference is multiplied by `gain`."""
        return max(self.energy - 2 * gain * self.cross + gain**2 * self.power, 0.0)

    def best_gain(self, largest: float) -> float:
        """The gain in [0, largest] of least error."""
        return float(np.clip(self.cross / self.power, 0.0, largest)) if self.power > 0 else 0.0


def split_by_group(count: int, folds: int, groups: Sequence[object] | None, seed: int) -> np.ndarray:
    """A fold in 0..folds-1 for each of `count` items; items of one group stay together. Folds are as even as groups allow."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes = np.bincount(labels)
    filled = np.zeros(folds)
    fold_of = np.zeros(len(sizes), dtype=np.int64)
    # Large groups first, each into the emptiest fold; ties among small ones in random order.
    shuffled = generator.permutation(len(sizes))
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of[group] = np.argmin(filled)
        filled[fold_of[group]] += sizes[group]
    return fold_of[labels]


def fold_statistics(data: Observations, fold: np.ndarray) -> list[Statistics]:
    """Statistics of every fold of `data`, all in the coordinates of the whole."""
    shift = observed_means(data)
    where = torch.from_numpy(fold).to(data.device)
    parts = (data.take(torch.nonzero(where == index).squeeze(1)) for index in range(int(fold.max()) + 1))
    return [Statistics.of(part, shift) for part in parts]


def merged(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all `parts` together."""
    first, *rest = parts
    result = first
    for part in rest:
        result = result.merged(part)
    return result


def log_likelihood(statistics: Statistics, parameters: Parameters) -> float:
    """Total log-likelihood (nats) of the items of `statistics`."""
    return expect(statistics, Totals.of(statistics), parameters).log_likelihood


def agreements(
    statistics: Statistics, parameters: Parameters, reference: Sequence[Float[Tensor, " d"]], targets: Sequence[Target]
) -> dict[Target, Agreement]:
    """For every target (observed, missing): how the conditional mean agrees with the truth, over all items that show both.

    `reference` [d_m] a modality is in the coordinates of the statistics. A target that no item can serve gets count 0. Costs
    about one E-step, and q^3 a target.
    """
    dims, q = statistics.dims, parameters.weights.shape[1]
    weights, means = parameters.weights.split(dims), parameters.mean.split(dims)
    scaled = [w / s for w, s in zip(weights, parameters.noise, strict=True)]
    grams = torch.stack([w.T @ part for w, part in zip(weights, scaled, strict=True)])
    eye = torch.eye(q, dtype=torch.float64, device=statistics.device)
    offset = [mean - centre for mean, centre in zip(means, reference, strict=True)]
    mean_score = torch.stack([part.T @ mean for part, mean in zip(scaled, means, strict=True)])
    served = {observed: _Scores.of(sums, dims, scaled) for observed, sums in statistics.patterns.items()}

    result = {}
    # Targets of the same modalities, whichever of them is missing, share their sums over patterns.
    pools: dict[tuple[int, ...], _Scores | None] = {}
    for observed, missing in targets:
        needed = tuple(sorted({*observed, missing}))
        if needed not in pools:
            pools[needed] = _Scores.pooled([s for shown, s in served.items() if set(needed) <= set(shown)], needed, dims)
        pooled = pools[needed]
        if pooled is None:
            result[observed, missing] = Agreement()
            continue
        own, others = needed.index(missing), [place for place, j in enumerate(needed) if j != missing]
        noise, centre = parameters.noise[missing], reference[missing]
        n = pooled.count
        h, g = pooled.first[others].sum(dim=0), mean_score[list(observed)].sum(dim=0)
        posterior = inverse(eye + grams[list(observed)].sum(dim=0))
        latent = h - n * g
        square = (
            pooled.second[others][:, others].sum(dim=(0, 1)) - torch.outer(h, g) - torch.outer(g, h) + n * torch.outer(g, g)
        )
        # W'x u' with u the scores of what is observed; W = s^2 W~ turns scores into it.
        crossed = noise * pooled.second[own, others].sum(dim=0) - noise * torch.outer(pooled.first[own], g)
        crossed -= torch.outer(weights[missing].T @ centre, latent)
        total = pooled.total.split([dims[j] for j in needed])[own]
        cross = (posterior * crossed).sum() + offset[missing] @ (total - n * centre)
        power = (posterior @ square @ posterior * (noise * grams[missing])).sum()
        power += 2 * (weights[missing].T @ offset[missing]) @ posterior @ latent + n * offset[missing] @ offset[missing]
        energy = pooled.square[own] - 2 * centre @ total + n * centre @ centre
        # Differences of sums: rounding may leave less than nothing of a modality that hardly varies.
        result[observed, missing] = Agreement(float(n), max(float(energy), 0.0), float(cross), max(float(power), 0.0))
    return result


def conditional_mean(
    parameters: Parameters, target: Target, dims: Sequence[int], reference: Sequence[Float[Tensor, " d"]]
) -> AffineMap:
    """The conditional mean of the missing modality of `target`, as deviations from `reference` [d_m] of those of the observed ones."""
    observed, missing = target
    weights, means = parameters.weights.split(list(dims)), parameters.mean.split(list(dims))
    own = torch.cat([weights[j] for j in observed])
    scaled = torch.cat([weights[j] / parameters.noise[j] for j in observed])
    left = scaled @ inverse(torch.eye(own.shape[1], dtype=own.dtype, device=own.device) + own.T @ scaled)
    away = torch.cat([reference[j] - means[j] for j in observed])
    right = weights[missing].T
    return AffineMap(left, right, (away @ left) @ right + means[missing] - reference[missing])


@dataclass
class _Scores:
    """Moments of the scores u_j = W~_j' z_j of the modalities of a pattern, and those of z_m itself for its modalities."""

    observed: tuple[int, ...]
    count: float
    first: Float[Tensor, "o q"]
    second: Float[Tensor, "o o q q"]
    total: Float[Tensor, " d"]
    square: Float[Tensor, " o"]

    @classmethod
    def of(cls, sums: PatternStatistics, dims: Sequence[int], scaled: Sequence[Tensor]) -> _Scores:
        sizes = [dims[j] for j in sums.observed]
        q = scaled[0].shape[1]
        o = len(sizes)
        second = torch.zeros(o, o, q, q, dtype=torch.float64, device=sums.total.device)
        for rows in sums.rows:
            scores = [part @ scaled[j] for j, part in zip(sums.observed, rows.split(sizes, dim=1), strict=True)]
            stacked = torch.cat(scores, dim=1)
            second += (stacked.T @ stacked).reshape(o, q, o, q).transpose(1, 2)
        if sums.moment is not None:
            ends = list(itertools.accumulate(sizes, initial=0))
            for b, j in enumerate(sums.observed):
                columns = sums.moment[:, ends[b] : ends[b + 1]] @ scaled[j]
                for a, i in enumerate(sums.observed):
                    second[a, b] += scaled[i].T @ columns[ends[a] : ends[a + 1]]
        parts = sums.total.split(sizes)
        first = torch.stack([scaled[j].T @ part for j, part in zip(sums.observed, parts, strict=True)])
        square = torch.stack([part.sum() for part in sums.diagonal().split(sizes)])
        return cls(sums.observed, sums.count, first, second, sums.total, square)

    @classmethod
    def pooled(cls, sources: Sequence[_Scores], wanted: tuple[int, ...], dims: Sequence[int]) -> _Scores | None:
        """Sums over `sources` of what concerns the modalities `wanted`; None without sources."""
        if not sources:
            return None
        places = [[scores.observed.index(j) for j in wanted] for scores in sources]
        count = sum(scores.count for scores in sources)
        first = torch.stack([scores.first[place] for scores, place in zip(sources, places, strict=True)]).sum(dim=0)
        second = sources[0].second.new_zeros(len(wanted), len(wanted), *sources[0].second.shape[2:])
        for scores, place in zip(sources, places, strict=True):
            second += scores.second if scores.observed == wanted else scores.second[place][:, place]
        totals = [
            torch.cat([scores.total.split([dims[j] for j in scores.observed])[p] for p in place])
            for scores, place in zip(sources, places, strict=True)
        ]
        square = torch.stack([scores.square[place] for scores, place in zip(sources, places, strict=True)]).sum(dim=0)
        return cls(wanted, count, first, second, torch.stack(totals).sum(dim=0), square)


def targets_of(patterns: Iterable[tuple[int, ...]], k: int) -> list[Target]:
    """What the items of these patterns ask for: every missing modality of every pattern that shows something, in their order."""
    return [(shown, m) for shown in patterns if shown for m in range(k) if m not in shown]


def possible_targets(k: int) -> Iterator[Target]:
    """All that items of `k` modalities could ask for: from each other modality alone, from all others, then from two, three and so on."""
    for size in dict.fromkeys((1, k - 1, *range(2, k - 1))):
        for shown in itertools.combinations(range(k), size):
            yield from ((shown, m) for m in range(k) if m not in shown)
