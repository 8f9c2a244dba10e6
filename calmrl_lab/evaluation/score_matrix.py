"""Retrieval from a matrix of scores: for people who compute similarities themselves and want ranks, recalls, intervals and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.retrieval import Ranks, recall
from calmrl_lab.evaluation.score_rows import recall_table, score_rows
from calmrl_lab.evaluation.significance import LEVEL, Comparison, Interval, compare, interval
from calmrl_lab.store.convert.arrays_in_memory import for_numpy

if TYPE_CHECKING:
    import pandas as pd

# Scores that are compared at once.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class MatrixEvaluation:
    """Ranks of every query of a matrix of scores: `ranks`, and the `group` [Q] within which queries are resampled together."""

    ranks: Ranks
    group: Shaped[np.ndarray, " q"]

    def recall(self, k: int = 1) -> Float[np.ndarray, " q"]:
        """Recall@k per query, in 0..1, ties as expected under a random order; NaN for a query without a positive."""
        return np.where(self.ranks.positives > 0, recall(self.ranks, k), np.nan)

    def interval(self, k: int = 1, level: float = LEVEL, seed: int = 0) -> Interval:
        """Mean Recall@k over the queries that have a positive, in 0..1, with its bootstrap interval over groups."""
        served = self.ranks.positives > 0
        return interval(self.recall(k)[served], np.random.default_rng(seed), self.group[served], level=level, top=1.0)

    def table(self) -> pd.DataFrame:
        """One row: Recall@1/5/10 in percent with 95 % intervals, median and mean rank, MRR, nDCG, chance (`score_rows.recall_table`)."""
        import torch

        owner, names = torch.arange(len(self.group)), np.arange(len(self.group)).astype(str)
        about: dict[str, Any] = {"query": "query", "gallery": "gallery", "scorer": "given"}
        rows = score_rows(self.ranks, owner, names, self.group.astype(str), np.full(len(names), ""), **about)
        return recall_table(rows).drop(columns=["query", "gallery"])

    def compare(self, other: MatrixEvaluation, k: int = 1, level: float = LEVEL, seed: int = 0) -> Comparison:
        """Mean Recall@k minus that of `other` on the same queries, in 0..1, with interval and two-sided p (`significance.compare`).

        Raises CalmrlError if the two have other queries, or not the same ones have a positive.
        """
        served = self.ranks.positives > 0
        if len(self.group) != len(other.group) or (served != (other.ranks.positives > 0)).any():
            raise CalmrlError(
                "the two matrices do not have the same queries",
                hint="row i of both must be the same query, with a positive in both or in neither",
            )
        mine, others = self.recall(k)[served], other.recall(k)[served]
        return compare(mine, others, np.random.default_rng(seed), self.group[served], level=level)


def evaluate_matrix(
    scores: Float[np.ndarray, "q g"],
    positives: Shaped[np.ndarray, "*shape"] | Sequence[int] | None = None,
    groups: Sequence[Any] | Shaped[np.ndarray, " q"] | None = None,
) -> MatrixEvaluation:
    """Rank the candidates of every query by a matrix of scores [Q, G], larger is better; ties are counted, not broken.

    positives: which candidates are right: a bool matrix [Q, G], or the place of the one right candidate of every query [Q]; default: the
    diagonal of a square matrix. groups [Q]: queries that belong together (captions of one clip) and are resampled together; default each
    alone. For the other direction give `scores.T`. NumPy or torch; scores are compared in the dtype that they have.

    Raises CalmrlError for shapes that disagree, NaN, a place that is no candidate, or no query with a positive.

    >>> import numpy as np
    >>> found = evaluate_matrix(np.array([[0.9, 0.1], [0.8, 0.3]]))
    >>> found.recall(1).tolist(), found.interval(1).value
    ([1.0, 0.0], 0.5)
    """
    matrix = _numpy(scores)
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype.kind not in "fiu":
        raise CalmrlError(
            f"scores are {matrix.dtype} {list(matrix.shape)}, expected numbers [queries, candidates]",
            hint="a sparse matrix: scores.toarray()" if hasattr(scores, "toarray") else None,
        )
    right = _positives(positives, matrix.shape)
    if not right.any():
        raise CalmrlError(
            "no query has a positive, so there is nothing to rank", hint="positives: True where a candidate is right"
        )
    unit = np.arange(len(matrix)) if groups is None else np.asarray(groups)
    if unit.shape != (len(matrix),):
        raise CalmrlError(f"groups have {unit.size} entries for {len(matrix)} queries")
    step = max(1, _BLOCK // matrix.shape[1])
    parts = [_counts(matrix[start : start + step], right[start : start + step], start) for start in range(0, len(matrix), step)]
    greater, equal, best, own = np.concatenate(parts, axis=1)
    return MatrixEvaluation(Ranks(greater, equal, best, own, np.full(len(matrix), matrix.shape[1], dtype=np.int64)), unit)


def _counts(scores: Float[np.ndarray, "b g"], right: Bool[np.ndarray, "b g"], first: int) -> np.ndarray:
    """Candidates above, and tied with, the best positive, positives with its score, and positives, [4, b]; zeros without a positive."""
    if scores.dtype.kind == "f" and np.isnan(scores).any():
        row, column = np.argwhere(np.isnan(scores))[0].tolist()
        raise CalmrlError(f"the score of query {first + row} and candidate {column} is NaN")
    own = right.sum(axis=1)
    lowest = -np.inf if scores.dtype.kind == "f" else np.iinfo(scores.dtype).min
    best = np.where(right, scores, scores.dtype.type(lowest)).max(axis=1, keepdims=True)
    level = scores == best
    found = [(scores > best).sum(axis=1), (level & ~right).sum(axis=1), (level & right).sum(axis=1)]
    return np.stack([*(np.where(own > 0, count, 0) for count in found), own]).astype(np.int64)


def _positives(given: Any, shape: tuple[int, ...]) -> Bool[np.ndarray, "q g"]:
    queries, candidates = shape
    if given is None:
        if queries != candidates:
            raise CalmrlError(
                f"the matrix is {queries} by {candidates}, so its diagonal does not say which candidates are right",
                hint="positives: a bool matrix, or the place of the right candidate of every query",
            )
        return np.eye(queries, dtype=bool)
    right = _numpy(given)
    if right.shape == shape and right.dtype == bool:
        return right
    if right.shape != (queries,) or right.dtype.kind not in "iu":
        raise CalmrlError(
            f"positives are {right.dtype} {list(right.shape)}, expected bool [{queries}, {candidates}] or whole numbers [{queries}]",
            hint="a matrix of 0 and 1: positives.astype(bool)" if right.shape == shape else None,
        )
    if right.min() < 0 or right.max() >= candidates:
        wrong = int(np.argmax((right < 0) | (right >= candidates)))
        raise CalmrlError(
            f"the positive of query {wrong} is candidate {int(right[wrong])}; there are candidates 0 to {candidates - 1}"
        )
    return np.arange(candidates) == right[:, None]


def _numpy(values: Any) -> np.ndarray:
    values = for_numpy(values)
    try:
        return np.asarray(values)
    except ValueError:
        raise CalmrlError(
            "rows of different length are no matrix", hint="several right candidates per query: a bool matrix"
        ) from None
