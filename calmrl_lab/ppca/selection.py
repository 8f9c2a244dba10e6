"""Choices of PPCA made on held-out items: latent dimension, prior, number of iterations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.ppca.em import NoiseKind, Parameters, Totals, iterate
from calmrl_lab.ppca.held_out import Agreement, Target, agreements, log_likelihood
from calmrl_lab.ppca.initialisation import narrowed, pairwise_start
from calmrl_lab.ppca.statistics import Statistics
from calmrl_lab.runtime.progress import tracked

_LATENT_DIMS = (4, 8, 16, 32, 64, 128)
# Pseudo-items of the prior on W, as a share of the items that show a modality.
_RIDGES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.0)
_STOPS = (2, 4, 8, 16, 32, 64, 128)
_LARGEST_GAIN = 2.0
# The share of the error that a step has to take away for another one to be tried.
_LEAST_GAINED = 0.005
# Rounds of a start that only serves to choose; EM goes on from it.
_ROUNDS = 3


def most_likely_latent_dim(
    training: Statistics, held_out: Statistics, noise: NoiseKind = "per-modality", ridge: float = 0.0, iterations: int = 10
) -> int:
    """The latent dimension of 4, 8, ..., 128 under which `held_out` is most likely, after a few EM steps on `training`.

    Stops at the first one that is less likely than the one before.
    """
    totals = Totals.of(training)
    possible = [q for q in _LATENT_DIMS if q < sum(training.dims)] or [1]
    best, best_likelihood = possible[0], -float("inf")
    for q in tracked(possible, "choosing the latent dimension", unit="values"):
        parameters = pairwise_start(training, totals, q, noise)
        parameters, _ = iterate(training, totals, parameters, iterations, noise, ridge)
        likelihood = log_likelihood(held_out, parameters)
        if likelihood <= best_likelihood:
            break
        best, best_likelihood = q, likelihood
    return best


@dataclass(frozen=True)
class Fold:
    """One split of the items: what is fitted on, what is scored, and the means of the former as the reference to beat."""

    training: Statistics
    totals: Totals
    held_out: Statistics
    _starts: dict[tuple[int, NoiseKind], Parameters] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, training: Statistics, held_out: Statistics) -> Fold:
        return cls(training, Totals.of(training), held_out)

    @property
    def reference(self) -> list[Float[Tensor, " d"]]:
        return [total / n for total, n in zip(self.totals.total, self.totals.weight, strict=True)]

    def start(self, latent_dim: int, noise: NoiseKind) -> Parameters:
        """`pairwise_start` on the training items after a few rounds, computed once."""
        if (latent_dim, noise) not in self._starts:
            self._starts[latent_dim, noise] = pairwise_start(self.training, self.totals, latent_dim, noise, _ROUNDS)
        return self._starts[latent_dim, noise]

    def score(self, parameters: Parameters, targets: Sequence[Target]) -> dict[Target, Agreement]:
        return agreements(self.held_out, parameters, self.reference, targets)


@dataclass(frozen=True)
class Choice:
    """What is chosen: latent dimension, ridge as a share of the items that show a modality, EM iterations; and its held-out
    score."""

    latent_dim: int
    ridge: float
    iterations: int
    score: float


def choose(
    folds: Sequence[Fold],
    weights: dict[Target, float],
    latent_dims: Sequence[int],
    iterations: int,
    noise: NoiseKind = "per-modality",
    ridges: Sequence[float] = _RIDGES,
    steps: int = 4,
) -> Choice:
    """The choice of least held-out imputation error, over `folds` together.

    The error of a target is taken at its best gain and relative to that of the mean, and weighted by `weights`. At the first
    latent dimension the prior is relaxed step by step, each fit from the same start, until that stops helping; then the
    smaller ones are tried under the prior that was best, from the strongest components of the first start, until that stops helping, and last the
    number of iterations is chosen. `latent_dims` begin with the largest.
    """
    first, *others = latent_dims

    def starts(q: int) -> list[Parameters]:
        return [narrowed(fold.start(first, noise), q, fold.training, fold.totals, noise) for fold in folds]

    def reached(q: int, ridge: float) -> Choice:
        return Choice(q, ridge, iterations, _score(folds, _advance(folds, starts(q), steps, noise, ridge), weights))

    tried: list[Choice] = []
    for ridge in tracked(ridges, f"choosing the prior at {first} latent dimensions", unit="values"):
        tried.append(reached(first, ridge))
        if _settled(tried):
            break
    narrower = [min(tried, key=lambda choice: choice.score)]
    for q in tracked(others, "choosing the latent dimension", unit="values"):
        narrower.append(reached(q, narrower[0].ridge))
        if _settled(narrower):
            break
    best = min(narrower, key=lambda choice: choice.score)

    current = [fold.start(best.latent_dim, noise) for fold in folds]
    stopped: list[Choice] = []
    stops = [0, *sorted({min(stop, iterations) for stop in (*_STOPS, iterations)})]
    for before, stop in tracked(list(itertools.pairwise(stops)), "choosing the number of iterations", unit="values"):
        current = _advance(folds, current, stop - before, noise, best.ridge)
        stopped.append(Choice(best.latent_dim, best.ridge, stop, _score(folds, current, weights)))
        if _settled(stopped):
            break
    return min(stopped, key=lambda choice: choice.score)


def _settled(tried: Sequence[Choice]) -> bool:
    """Whether the last score is hardly better than the one before, or worse: held-out error has one valley along each path."""
    return len(tried) > 1 and tried[-1].score > (1 - _LEAST_GAINED) * tried[-2].score


def pseudo_items(totals: Totals, share: float) -> float:
    """The ridge that is `share` of the items that show a modality (the median one)."""
    return share * float(torch.median(totals.count))


def _advance(
    folds: Sequence[Fold], parameters: Sequence[Parameters], steps: int, noise: NoiseKind, ridge: float
) -> list[Parameters]:
    return [
        iterate(fold.training, fold.totals, current, steps, noise, pseudo_items(fold.totals, ridge))[0]
        for fold, current in zip(folds, parameters, strict=True)
    ]


def _score(folds: Sequence[Fold], parameters: Sequence[Parameters], weights: dict[Target, float]) -> float:
    found = [fold.score(current, list(weights)) for fold, current in zip(folds, parameters, strict=True)]
    total, weight_sum = 0.0, 0.0
    for target, weight in weights.items():
        agreement = sum((scores[target] for scores in found), Agreement())
        if agreement.count == 0 or agreement.energy == 0:
            continue
        total += weight * agreement.error(agreement.best_gain(_LARGEST_GAIN)) / agreement.energy
        weight_sum += weight
    return total / weight_sum if weight_sum else float("inf")
