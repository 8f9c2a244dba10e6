"""Exact ranks by streaming tiles, both directions from the same scores, ties counted; recall and its kin from ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from calmrl_lab.errors import CalmrlError

# 1,024 x 1,024 float32 are 4 MB: the tile stays in cache, and nothing of size Q x G is ever held.
TILE = 1024
TileScore = Callable[[Float[Tensor, "q d"], Float[Tensor, "g d"]], Float[Tensor, "q g"]]


@dataclass(frozen=True)
class Ranks:
    """How every query did, [Q] int64 each.

    `greater`: candidates scored strictly above the query's best positive; `equal`: other candidates with exactly its score that are no
    positives; `positives`: positives in the gallery; `candidates`: gallery size. A query without a positive has greater = equal = 0
    and positives = 0, and must be left out of any mean.
    """

    greater: Int[np.ndarray, " q"]
    equal: Int[np.ndarray, " q"]
    positives: Int[np.ndarray, " q"]
    candidates: Int[np.ndarray, " q"]


def inner_product(queries: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"]) -> Float[Tensor, "q g"]:
    """The default tile score: <q, g>, the cosine of unit-norm embeddings."""
    return queries @ gallery.mT


@torch.no_grad()
def rank_both(
    left: Float[Tensor, "q d"],
    right: Float[Tensor, "g d"],
    left_owner: Int[Tensor, " q"],
    right_owner: Int[Tensor, " g"],
    score: TileScore = inner_product,
    tile: int = TILE,
) -> tuple[Ranks, Ranks]:
    """Ranks of `left` rows against the gallery `right`, and of `right` rows against the gallery `left`.

    Rows of the same owner (item) are each other's positives; with several, the best one counts (the rank is the minimum over
    positives). Two passes over the tiles: the best positive's score of every row first, the counts second. Both read the same
    products of the same tiles: computed any other way, a positive's score differs in the last bit and beats or ties itself.
    Memory is two tiles. Raises CalmrlError for NaN scores or sizes that do not fit.
    """
    if len(left) != len(left_owner) or len(right) != len(right_owner) or left.shape[1:] != right.shape[1:]:
        raise CalmrlError(
            f"ranking needs [Q, d], [G, d] and an owner a row, got {list(left.shape)}, {list(right.shape)}, {len(left_owner)}, {len(right_owner)}"
        )
    best_left = _fill(len(left), -torch.inf, left)
    best_right = _fill(len(right), -torch.inf, left)
    own_left, own_right = (torch.zeros(n, dtype=torch.int64, device=left.device) for n in (len(left), len(right)))
    for rows, columns in _tiles(len(left), len(right), tile):
        same = left_owner[rows, None] == right_owner[None, columns]
        # Most tiles of a large gallery hold no positive at all, and their products are not needed yet.
        if not bool(same.any()):
            continue
        scores = _finite(score(left[rows], right[columns]))
        positive = scores.masked_fill(~same, -torch.inf)
        best_left[rows] = torch.maximum(best_left[rows], positive.amax(dim=1))
        best_right[columns] = torch.maximum(best_right[columns], positive.amax(dim=0))
        own_left[rows] += same.sum(dim=1)
        own_right[columns] += same.sum(dim=0)
    above_left, tied_left, above_right, tied_right = (
        torch.zeros(n, dtype=torch.int64, device=left.device) for n in (len(left), len(left), len(right), len(right))
    )
    for rows, columns in _tiles(len(left), len(right), tile):
        scores = _finite(score(left[rows], right[columns]))
        same = left_owner[rows, None] == right_owner[None, columns]
        others = ~same if bool(same.any()) else None
        for best, above, tied, dim in (
            (best_left[rows, None], above_left[rows], tied_left[rows], 1),
            (best_right[None, columns], above_right[columns], tied_right[columns], 0),
        ):
            above += (scores > best).sum(dim=dim)
            level = scores == best
            tied += (level if others is None else level & others).sum(dim=dim)
    return _ranks(above_left, tied_left, own_left, len(right)), _ranks(above_right, tied_right, own_right, len(left))


def _fill(n: int, value: float, like: Tensor) -> Tensor:
    return torch.full((n,), value, dtype=like.dtype, device=like.device)


def _tiles(rows: int, columns: int, tile: int) -> list[tuple[slice, slice]]:
    return [
        (slice(r, min(r + tile, rows)), slice(c, min(c + tile, columns)))
        for r in range(0, rows, tile)
        for c in range(0, columns, tile)
    ]


def _finite(scores: Tensor) -> Tensor:
    # A NaN compares false with everything and would rank first.
    if bool(torch.isnan(scores.sum())) and bool(torch.isnan(scores).any()):
        raise CalmrlError(
            "a score is not a number: the embeddings hold NaN", hint="calmrl-lab store verify, or train the run again"
        )
    return scores


def _ranks(above: Tensor, tied: Tensor, own: Tensor, candidates: int) -> Ranks:
    served = own > 0
    numbers = (t.masked_fill(~served, 0).cpu().numpy() for t in (above, tied))
    greater, equal = numbers
    return Ranks(greater, equal, own.cpu().numpy(), np.full(len(greater), candidates, dtype=np.int64))


Ties = Literal["expected", "optimistic", "pessimistic"]


def recall(greater: np.ndarray, equal: np.ndarray, k: int, ties: Ties = "expected") -> Float[np.ndarray, " q"]:
    """Recall@k a query, in 0..1: the probability that its best positive is among the first k.

    `expected` takes tied candidates in random order, `optimistic` puts the positive first among them, `pessimistic` last. (With one
    relevant item this is what information retrieval calls success@k.) Raises CalmrlError for k < 1.
    """
    if k < 1:
        raise CalmrlError(f"recall is defined at ranks from 1, got {k}")
    greater, equal = np.asarray(greater), np.asarray(equal)
    if ties == "optimistic":
        return (greater < k).astype(np.float64)
    if ties == "pessimistic":
        return (greater + equal < k).astype(np.float64)
    return np.clip((k - greater) / (equal + 1), 0.0, 1.0)


def expected_rank(greater: np.ndarray, equal: np.ndarray) -> Float[np.ndarray, " q"]:
    """Mean rank a query over random orders of the tied candidates; 1 is best."""
    return 1.0 + np.asarray(greater) + np.asarray(equal) / 2


def reciprocal_rank(greater: np.ndarray, equal: np.ndarray) -> Float[np.ndarray, " q"]:
    """1 / rank a query, averaged over random orders of the tied candidates."""
    greater, equal = np.asarray(greater, dtype=np.int64), np.asarray(equal, dtype=np.int64)
    return (_harmonic(greater + equal + 1) - _harmonic(greater)) / (equal + 1)


def discounted_gain(greater: np.ndarray, equal: np.ndarray) -> Float[np.ndarray, " q"]:
    """nDCG a query counting its best positive only: mean of 1 / log2(1 + rank) over random orders of the tied candidates."""
    greater, equal = np.asarray(greater, dtype=np.int64), np.asarray(equal, dtype=np.int64)
    longest = int((greater + equal).max(initial=0)) + 2
    sums = np.concatenate([[0.0], np.cumsum(1 / np.log2(1 + np.arange(1, longest, dtype=np.float64)))])
    return (sums[greater + equal + 1] - sums[greater]) / (equal + 1)


def _harmonic(n: np.ndarray) -> np.ndarray:
    sums = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int(n.max(initial=0)) + 1, dtype=np.float64))])
    return sums[n]
