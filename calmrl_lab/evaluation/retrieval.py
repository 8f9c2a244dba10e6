"""Exact ranks in both directions from the same tiles of scores, ties counted; recall and other measures from ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.rank_counts import Counts, SameOwner, count_products, count_scores, tile_size
from calmrl_lab.scorers.base import Scorer

BlockScore = Callable[[Float[Tensor, "q d"], Float[Tensor, "g d"]], Float[Tensor, "q g"]]


@dataclass(frozen=True)
class Ranks:
    """Ranks of every query, [Q] int64 each.

    `greater`: candidates scored strictly above the query's best positive; `equal`: other candidates with exactly its score that are no
    positives; `best_positives`: positives with that score; `positives`: positives in the gallery; `candidates`: gallery size. A query
    without a positive has zeros but for `candidates`, and must be left out of any mean.
    """

    greater: Int[np.ndarray, " q"]
    equal: Int[np.ndarray, " q"]
    best_positives: Int[np.ndarray, " q"]
    positives: Int[np.ndarray, " q"]
    candidates: Int[np.ndarray, " q"]


def rank_both(
    left: Float[Tensor, "q d"],
    right: Float[Tensor, "g d"],
    left_owner: Int[Tensor, " q"],
    right_owner: Int[Tensor, " g"],
    score: BlockScore | None = None,
    tile: int | None = None,
) -> tuple[Ranks, Ranks]:
    """Ranks of `left` rows against the gallery `right`, and of `right` rows against the gallery `left`.

    Rows of the same owner (item) are each other's positives; with several, the best one counts (the rank is the minimum over
    positives). The score is the inner product, the cosine of unit-norm embeddings, ranked as if computed in float64 whatever
    the dtype; or `score` of (some left rows, some right rows), read as it comes. Memory is a few tiles (default: 1,024 square,
    8,192 on a GPU). Raises CalmrlError for NaN scores or sizes that do not fit.

    >>> import torch
    >>> from calmrl_lab.evaluation.retrieval import rank_both
    >>> text, vision = torch.eye(3), torch.eye(3)[[0, 2, 1]]  # the second and third item are swapped
    >>> forward, backward = rank_both(text, vision, torch.arange(3), torch.arange(3))
    >>> forward.greater.tolist()
    [0, 1, 1]
    """
    _check_owners(len(left), len(right), left_owner, right_owner)
    positives = SameOwner(left_owner, right_owner)
    if score is None:
        return _rank_products(left, right, positives, tile)
    with torch.no_grad():
        tile = tile or tile_size(left.device)
        counts = count_scores(
            lambda r, c: score(left[r], right[c]), positives, len(left), len(right), left.device, tile, tie=0.0
        )
    return _ranks(counts, len(left), len(right))


def rank_items(
    scorer: Scorer,
    queries: Float[Tensor, "q d"],
    query_owner: Int[Tensor, " q"],
    items: Float[Tensor, "g k d"],
    mask: Bool[Tensor, "g k"],
    item_owner: Int[Tensor, " g"],
    tile: int | None = None,
) -> tuple[Ranks, Ranks]:
    """Ranks of `queries` (of one modality) among items that show any subset of k modalities, and of the items among the queries.

    An item that shows nothing the scorer can use stays a candidate and ranks below all others, tied with its like; as a query
    it can only guess: all candidates are tied. Raises CalmrlError for NaN scores or sizes that do not fit.
    """
    _check_owners(len(queries), len(items), query_owner, item_owner)
    served = scorer.serves(mask)
    shown = served.nonzero().squeeze(1)
    owners = item_owner[shown]
    # Set scorers hold one tile of float64 a modality at once.
    tile = tile or tile_size(queries.device) // (1 if scorer.items_are_vectors else 2)
    with torch.no_grad():
        if scorer.items_are_vectors:
            vectors = scorer.vectors(items[shown], mask[shown])
            counts = count_products(_wide(queries), _wide(vectors), SameOwner(query_owner, owners), tile)
        else:
            counts = count_scores(
                lambda r, c: scorer.score(queries[r], items[shown[c]], mask[shown[c]]),
                SameOwner(query_owner, owners), len(queries), len(shown), queries.device, tile, scorer.tie,
            )  # fmt: skip
    forward, backward = _ranks(counts, len(queries), len(shown))
    guesses = _owned(item_owner, query_owner)
    return _with_unserved(forward, query_owner, item_owner[~served]), _with_guesses(backward, served, guesses, len(queries))


def _owned(asking: Int[Tensor, " q"], owners: Int[Tensor, " g"]) -> Int[np.ndarray, " q"]:
    """How many of `owners` are the same as each of `asking`."""
    names, counts = (t.cpu().numpy() for t in torch.unique(owners, return_counts=True))
    wanted = asking.cpu().numpy()
    if len(names) == 0:
        return np.zeros(len(wanted), dtype=np.int64)
    place = np.searchsorted(names, wanted).clip(max=len(names) - 1)
    return np.where(names[place] == wanted, counts[place], 0)


def _with_unserved(ranks: Ranks, query_owner: Int[Tensor, " q"], unserved_owner: Int[Tensor, " u"]) -> Ranks:
    """Candidates that no score was computed for come last, all tied."""
    own = _owned(query_owner, unserved_owner)
    only_last = (ranks.positives == 0) & (own > 0)
    return Ranks(
        greater=np.where(only_last, ranks.candidates, ranks.greater),
        equal=np.where(only_last, len(unserved_owner) - own, ranks.equal),
        best_positives=np.where(only_last, own, ranks.best_positives),
        positives=ranks.positives + own,
        candidates=ranks.candidates + len(unserved_owner),
    )


def _with_guesses(ranks: Ranks, served: Bool[Tensor, " g"], own: Int[np.ndarray, " g"], candidates: int) -> Ranks:
    """Queries that no score was computed for find all candidates tied."""
    place = served.cpu().numpy()
    greater, equal, best = np.zeros(len(place), dtype=np.int64), np.where(own > 0, candidates - own, 0), own.copy()
    greater[place], equal[place], best[place] = ranks.greater, ranks.equal, ranks.best_positives
    return Ranks(greater, equal, best, own, np.full(len(place), candidates, dtype=np.int64))


def _check_owners(rows: int, columns: int, left: Tensor, right: Tensor) -> None:
    if rows != len(left) or columns != len(right):
        raise CalmrlError(f"ranking needs an owner per row, got {len(left)} for {rows} rows and {len(right)} for {columns}")


@torch.no_grad()
def _rank_products(left: Tensor, right: Tensor, positives: SameOwner, tile: int | None) -> tuple[Ranks, Ranks]:
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise CalmrlError(f"ranking needs embeddings [Q, d] and [G, d], got {list(left.shape)} and {list(right.shape)}")
    counts = count_products(_wide(left), _wide(right), positives, tile or tile_size(left.device))
    return _ranks(counts, len(left), len(right))


def _wide(embeddings: Tensor) -> Tensor:
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


def _ranks(counts: tuple[Counts, Counts], left: int, right: int) -> tuple[Ranks, Ranks]:
    forward, backward = (
        Ranks(above, tied, best, own, np.full(len(own), candidates, dtype=np.int64))
        for (above, tied, own, best), candidates in zip((side.numpy() for side in counts), (right, left), strict=True)
    )
    return forward, backward


def recall(ranks: Ranks, k: int) -> Float[np.ndarray, " q"]:
    """Recall@k per query, in 0..1: the probability that a positive is among the first k under a random order of tied candidates.

    The best positives are `best_positives` of `best_positives + equal` tied candidates, and the probability that none of them is among the
    first of these is hypergeometric. (Where a query has several right answers, information retrieval calls this success@k.) Raises
    CalmrlError for k < 1.
    """
    if k < 1:
        raise CalmrlError(f"recall is defined at ranks from 1, got {k}")
    others, tied = ranks.equal.astype(np.float64), (ranks.equal + ranks.best_positives).astype(np.float64)
    places = np.clip(k - ranks.greater, 0, None)
    missed = np.ones(len(tied))
    for drawn in range(int(min(k, tied.max(initial=0)))):
        left = np.clip(others - drawn, 0.0, None) / np.maximum(tied - drawn, 1.0)
        missed = np.where(drawn < places, missed * left, missed)
    alone = ranks.best_positives <= 1
    return np.where(alone, np.clip((k - ranks.greater) / (others + 1), 0.0, 1.0), 1.0 - missed)


def expected_rank(ranks: Ranks) -> Float[np.ndarray, " q"]:
    """Rank of a query's first positive, 1 is best, in the mean over random orders of the tied candidates."""
    tied, best = ranks.equal + ranks.best_positives, np.maximum(ranks.best_positives, 1)
    return ranks.greater + (np.maximum(tied, 1) + 1) / (best + 1)


def reciprocal_rank(ranks: Ranks) -> Float[np.ndarray, " q"]:
    """1 / rank of a query's first positive, in the mean over random orders of the tied candidates."""
    return _mean_over_ties(lambda rank: 1 / rank, ranks)


def discounted_gain(ranks: Ranks) -> Float[np.ndarray, " q"]:
    """nDCG per query that counts its first positive only: 1 / log2(1 + rank), in the mean over random orders of the tied candidates."""
    return _mean_over_ties(lambda rank: 1 / np.log2(1 + rank), ranks)


def _mean_over_ties(gain: Callable[[np.ndarray], np.ndarray], ranks: Ranks) -> Float[np.ndarray, " q"]:
    """The mean of `gain` at the rank of the first positive over random orders of the tied candidates."""
    greater, tied = ranks.greater, np.maximum(ranks.equal + ranks.best_positives, 1)
    sums = np.concatenate([[0.0], np.cumsum(gain(np.arange(1, int((greater + tied).max(initial=0)) + 1, dtype=np.float64)))])
    mean = (sums[greater + tied] - sums[greater]) / tied
    several = ranks.best_positives > 1
    cases, place = np.unique(np.stack([greater, tied, ranks.best_positives])[:, several], axis=1, return_inverse=True)
    values = np.array([_mean_of_first(gain, *case) for case in cases.T.tolist()])
    mean[several] = values[place.ravel()] if len(values) else 0.0
    return mean


def _mean_of_first(gain: Callable[[np.ndarray], np.ndarray], greater: int, tied: int, best: int) -> float:
    """The mean of `gain` at the first of `best` positions drawn from `tied`, after `greater` others."""
    first = np.arange(1, tied - best + 2, dtype=np.float64)
    # P(first = 1) = best / tied; each further position misses once more.
    steps = (tied - first[1:] + 1 - best + 1) / (tied - first[1:] + 1)
    chance = best / tied * np.cumprod(np.concatenate([[1.0], steps]))
    return float((chance * gain(greater + first)).sum())
