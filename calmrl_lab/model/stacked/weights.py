"""Non-negative weights of a sum of similarities, chosen on validation items: for all pairs of modalities, then for each pair near those."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from torch import Tensor

# Items of a direction that decide; more make no difference to a handful of weights.
MOST_ITEMS = 500
# Weights are of scores with unit deviation; this keeps them finite where validation items are told apart without an error.
_RIDGE = 1e-3
# How much few items are distrusted (`cautious_weights`), as a factor of 1/n^2. Where features share a space a little is enough; elsewhere all similarities were
# fitted to training items and chosen on the same validation items, and a dozen of those cannot tell them apart.
SHARED_CAUTION, FITTED_CAUTION = 6.0, 600.0
# How much the weights of one pair of modalities are drawn towards those of all pairs: about what so many of its items say, and more where they are few.
_PULL, _FEW_PULL = 8.0, 1000.0
# Factors by which a weight is changed on the way uphill, shares of its own best scale at which one of zero may enter, and steps at most.
_FACTORS, _ENTRIES, _STEPS = (0.0, 0.25, 0.5, 2.0, 4.0), (0.25, 0.5, 1.0), 8
# Fewer items say nothing about ranks.
_LEAST_RANKED = 20
# Standard errors that a step has to gain. The best of many candidates is taken: one error is passed by chance too often.
_ERRORS = 2.0


def logistic_weights(scores: Sequence[Float[Tensor, "c n n"]]) -> Float[np.ndarray, " c"]:
    """Weights w >= 0 of c similarities that make the matching candidate most likely: the largest mean of log softmax(sum_c w_c s_c)_ii.

    `scores` holds one [c, n, n] per direction: similarity c of query i with candidate j, whose match is i; each direction counts once. The mean
    is concave in w, so there is one maximum, and a similarity that adds nothing to the others gets weight zero (stacking, Wolpert 1992; the
    logarithmic opinion pool of the similarities). A similarity that is constant gets weight zero.

    >>> good, noise = torch.eye(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    >>> weights = logistic_weights([torch.stack([good, noise])])
    >>> bool(weights[0] > 0), float(weights[1])
    (True, 0.0)
    """
    scale = _scales(scores)
    start = np.full(len(scale), 1.0 / len(scale))
    return _most_likely(_times(scores, scale), start, np.zeros(len(scale)), _RIDGE) * scale.numpy()


def cautious_weights(
    scores: Sequence[Float[Tensor, "c n n"]], safe: int, caution: float = SHARED_CAUTION
) -> Float[np.ndarray, " c"]:
    """Logistic weights, drawn towards similarity number `safe` alone while there are few items.

    The pull is a quadratic one in units of each similarity's deviation, of strength `caution` / n^2. With `SHARED_CAUTION` the weights are nearly
    those of the safe similarity alone below a dozen items, and nearly those of `logistic_weights` beyond fifty; with `FITTED_CAUTION` below thirty and
    beyond some hundreds.
    """
    scale = _scales(scores)
    alone = np.zeros(len(scale))
    alone[safe] = logistic_weights([part[safe : safe + 1] for part in scores])[0] / max(float(scale[safe]), 1e-300)
    pull = caution / _items(scores) ** 2
    # The pull towards `alone` and the ridge are one quadratic about a point between them.
    centre = alone * pull / (pull + _RIDGE)
    return _most_likely(_times(scores, scale), alone, centre, pull + _RIDGE) * scale.numpy()


def refined_weights(scores: Sequence[Float[Tensor, "c n n"]], around: Float[np.ndarray, " c"]) -> Float[np.ndarray, " c"]:
    """Logistic weights of a few directions, drawn towards the weights `around` that they have in common with others.

    The pull is a quadratic one in units of each similarity's deviation, and fades with n: what n items of these directions say outweighs it
    only where they are many. A similarity that is constant keeps its weight; where all weights would be zero, all keep theirs.

    >>> good, noise = torch.eye(40, dtype=torch.float64), torch.rand(40, 40, generator=torch.Generator().manual_seed(0)).double()
    >>> weights = refined_weights([torch.stack([good, noise])], np.array([1.0, 1.0]))
    >>> bool(weights[0] > 1.0 > weights[1])
    True
    """
    scale = _scales(scores)
    varies = scale.numpy() > 0
    centre = np.divide(around, scale.numpy(), out=np.zeros(len(around)), where=varies)
    items = _items(scores)
    found = _most_likely(_times(scores, scale), centre, centre, _PULL / items + _FEW_PULL / items**2) * scale.numpy()
    found = np.where(varies, found, around)
    return found if found.any() else around


def _items(scores: Sequence[Float[Tensor, "c n n"]]) -> float:
    """The mean number of items of a direction."""
    return sum(part.shape[1] for part in scores) / len(scores)


def _scales(scores: Sequence[Float[Tensor, "c n n"]]) -> Float[Tensor, " c"]:
    """One over the deviation of every similarity, zero for one that is constant."""
    spread = torch.stack([part.double().std(dim=(1, 2), correction=0) for part in scores]).square().mean(dim=0).sqrt()
    return torch.where(spread > 1e-12, 1 / spread.clamp_min(1e-12), 0.0)


def _times(scores: Sequence[Float[Tensor, "c n n"]], scale: Float[Tensor, " c"]) -> list[Float[Tensor, "c n n"]]:
    return [part.double() * scale[:, None, None] for part in scores]


def _most_likely(
    scores: Sequence[Float[Tensor, "c n n"]], start: np.ndarray, centre: np.ndarray, pull: float
) -> Float[np.ndarray, " c"]:
    """The weights w >= 0 of least -mean log softmax(sum_c w_c s_c)_ii + pull |w - centre|^2."""

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = 0.0, torch.zeros(len(weights), dtype=torch.float64)
        tensor = torch.from_numpy(weights)
        for part in scores:
            logs = torch.log_softmax(torch.einsum("c,cij->ij", tensor, part), dim=1)
            value -= float(logs.diagonal().mean())
            expected = (logs.exp() * part).sum(dim=2)
            gradient += (expected - part.diagonal(dim1=1, dim2=2)).mean(dim=1)
        away, count = weights - centre, len(scores)
        return value / count + pull * float(away @ away), (gradient / count).numpy() + 2 * pull * away

    found = minimize(loss, start, jac=True, bounds=[(0.0, None)] * len(start), method="L-BFGS-B")
    return np.asarray(found.x, dtype=np.float64)


def rank_weights(
    scores: Sequence[Float[Tensor, "c n n"]], items: Sequence[Int[Tensor, " n"]], start: Float[np.ndarray, " c"]
) -> Float[np.ndarray, " c"]:
    """Weights uphill from `start` in mean reciprocal rank, one weight at a time, while a step gains more than two standard errors.

    Logistic weights make matches likely, hard queries above all; what is reported are ranks. With few items the mean reciprocal rank is too noisy
    to choose by, so that a step has to be sure: the error is that of the paired difference over items; below 20 items none is. `items` [n] number the items of each
    direction of `scores`.
    """
    if len(torch.unique(torch.cat(list(items)))) < _LEAST_RANKED:
        return start
    scaled = [part.double() for part in scores]
    entries = _own_scales(scores)
    weights, ranks = start, _reciprocal_ranks(scaled, start)
    for _ in range(_STEPS):
        best, reached = weights, ranks
        for candidate in _neighbours(weights, entries):
            found = _reciprocal_ranks(scaled, candidate)
            if _mean(found) > _mean(reached):
                best, reached = candidate, found
        gain, error = _paired([a - b for a, b in zip(reached, ranks, strict=True)], items)
        if gain <= max(_ERRORS * error, 1e-9):
            return weights
        weights, ranks = best, reached
    return weights


def _neighbours(weights: np.ndarray, entries: np.ndarray) -> Iterator[np.ndarray]:
    for place, weight in enumerate(weights):
        for value in (weight * np.array(_FACTORS)) if weight > 0 else entries[place] * np.array(_ENTRIES):
            candidate = weights.copy()
            candidate[place] = value
            if candidate.any():
                yield candidate


def _own_scales(scores: Sequence[Float[Tensor, "c n n"]]) -> Float[np.ndarray, " c"]:
    """The logistic weight of every similarity alone."""
    count = len(scores[0])
    return np.array([logistic_weights([part[place : place + 1] for part in scores])[0] for place in range(count)])


def _reciprocal_ranks(scores: Sequence[Float[Tensor, "c n n"]], weights: np.ndarray) -> list[Float[Tensor, " n"]]:
    ranks = []
    for part in scores:
        total = torch.einsum("c,cij->ij", torch.from_numpy(weights), part)
        positive = total.diagonal().unsqueeze(1)
        greater = (total > positive).sum(dim=1).double()
        equal = (total == positive).sum(dim=1).double() - 1
        ranks.append(1 / (1 + greater + equal / 2))
    return ranks


def _mean(ranks: Sequence[Float[Tensor, " n"]]) -> float:
    return sum(float(part.mean()) for part in ranks) / len(ranks)


def _paired(gains: Sequence[Float[Tensor, " n"]], items: Sequence[Int[Tensor, " n"]]) -> tuple[float, float]:
    """The mean gain over directions and its standard error, items taken as independent and the directions of one item as not."""
    totals = torch.zeros(max(int(part.max()) for part in items) + 1, dtype=torch.float64)
    for gain, own in zip(gains, items, strict=True):
        totals[own] += gain / (len(gain) * len(gains))
    totals = totals[torch.unique(torch.cat(list(items)))]
    count = len(totals)
    return float(totals.sum()), float(totals.std() * count**0.5) if count > 1 else float("inf")
