"""Weights of a sum of similarities: the best on a grid, zero for what is noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calmrl_lab.model.stacked.weights import (
    FITTED_CAUTION,
    SHARED_CAUTION,
    cautious_weights,
    logistic_weights,
    rank_weights,
    refined_weights,
)


def _scores(seed: int, n: int, qualities: list[float]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([q * torch.eye(n) + torch.randn(n, n, generator=generator) for q in qualities]).double()


def _loss(weights: np.ndarray, scores: torch.Tensor) -> float:
    """Written out, query by query, on scores of unit deviation, with the same ridge."""
    scaled = [part / part.std(correction=0) for part in scores]
    total = 0.0
    for i in range(scores.shape[1]):
        logits = [sum(w * float(part[i, j]) for w, part in zip(weights, scaled, strict=True)) for j in range(scores.shape[1])]
        total -= logits[i] - float(np.log(np.sum(np.exp(logits))))
    return total / scores.shape[1] + 1e-3 * float(np.sum(np.square(weights)))


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_no_weights_of_a_grid_are_better(seed: int) -> None:
    scores = _scores(seed, 12, [2.0, 1.0])
    found = logistic_weights([scores]) * np.array([float(part.std(correction=0)) for part in scores])
    best = min(_loss(np.array(point), scores) for point in itertools.product(np.linspace(0, 5, 11), repeat=2))
    assert _loss(found, scores) <= best + 1e-4


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100.0))
def test_scale_of_a_similarity_does_not_matter(seed: int, factor: float) -> None:
    scores = _scores(seed, 30, [3.0, 1.0])
    changed = scores * torch.tensor([factor, 1.0], dtype=torch.float64)[:, None, None]
    plain, scaled = logistic_weights([scores]), logistic_weights([changed])
    np.testing.assert_allclose(plain[0], scaled[0] * factor, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(plain[1], scaled[1], rtol=1e-3, atol=1e-3)


def test_what_points_away_and_what_is_constant_get_nothing() -> None:
    scores = _scores(0, 40, [3.0, -3.0])
    scores = torch.cat([scores, torch.full((1, 40, 40), 7.0, dtype=torch.float64)])
    found = logistic_weights([scores, scores])
    assert found[0] > 0
    assert found[1] == 0.0
    assert found[2] == 0.0


def test_perfect_scores_have_finite_weights() -> None:
    found = logistic_weights([torch.eye(5, dtype=torch.float64)[None]])
    assert np.isfinite(found).all()
    assert found[0] > 0


def _mean_reciprocal_rank(weights: np.ndarray, directions: list[torch.Tensor]) -> float:
    total = 0.0
    for scores in directions:
        ranks = []
        for i in range(scores.shape[1]):
            sums = sum(w * part[i] for w, part in zip(weights, scores, strict=True))
            ranks.append(1 / (1 + int((sums > sums[i]).sum())))
        total += sum(ranks) / len(ranks)
    return total / len(directions)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_ranks_never_get_worse_on_the_way(seed: int) -> None:
    directions = [_scores(seed, 30, [2.0, 1.5, 0.0]), _scores(seed + 1, 30, [2.0, 1.5, 0.0])]
    start = logistic_weights(directions)
    found = rank_weights(directions, [torch.arange(30)] * 2, start)
    assert _mean_reciprocal_rank(found, directions) >= _mean_reciprocal_rank(start, directions)


def test_a_step_that_is_sure_is_taken_and_one_that_is_not_is_not() -> None:
    good, bad = _scores(0, 200, [4.0])[0], _scores(1, 200, [0.0])[0]
    scores = [torch.stack([good, bad])]
    # Nearly everything on noise: giving the other weight is sure to help.
    found = rank_weights(scores, [torch.arange(200)], np.array([0.05, 1.0]))
    assert _mean_reciprocal_rank(found, scores) > 2 * _mean_reciprocal_rank(np.array([0.05, 1.0]), scores)
    alike = [torch.stack([good, good + 1e-3 * bad])]
    np.testing.assert_array_equal(rank_weights(alike, [torch.arange(200)], np.array([1.0, 1.0])), [1.0, 1.0])


def test_many_items_of_a_pair_outweigh_what_all_pairs_say_and_few_do_not() -> None:
    few, many = _scores(0, 8, [0.0, 4.0]), _scores(0, 300, [0.0, 4.0])
    around = np.array([2.0, 2.0])
    moved = [np.abs(refined_weights([part], around) - around).max() for part in (few, many)]
    assert moved[0] < moved[1]
    assert refined_weights([many], around)[0] < 0.5


def test_where_nothing_would_count_the_weights_stay() -> None:
    worse = -_scores(0, 300, [4.0])
    around = np.array([0.01])
    assert refined_weights([worse], around)[0] == around[0]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_refined_weights_are_no_worse_than_what_they_start_at(seed: int) -> None:
    scores = _scores(seed, 30, [3.0, 1.0, 0.0])
    around = logistic_weights([_scores(seed + 1, 30, [1.0, 3.0, 0.0])])
    found = refined_weights([scores], around)
    spread = np.array([float(part.std(correction=0)) for part in scores])

    def pulled(weights: np.ndarray) -> float:
        units = weights * spread
        return (
            _loss(units, scores)
            - 1e-3 * float(np.sum(np.square(units)))
            + (8 / 30 + 1000 / 30**2) * float(np.sum(np.square(units - around * spread)))
        )

    assert (found >= 0).all()
    assert pulled(found) <= pulled(around) + 1e-9
    for step in (0.9, 1.1):
        assert pulled(found) <= pulled(found * step) + 1e-6


def test_few_items_hardly_leave_the_safe_similarity_and_many_do() -> None:
    few, many = _scores(3, 5, [2.0, 2.0]), _scores(3, 200, [2.0, 2.0])
    shares = []
    for part in (few, many):
        found = cautious_weights([part], 1) * np.array([float(one.std(correction=0)) for one in part])
        shares.append(found[1] / found.sum())
    assert shares[0] > 0.8
    assert shares[1] < 0.6
    np.testing.assert_allclose(cautious_weights([many], 1), logistic_weights([many]), rtol=0.05)


def test_the_more_caution_the_nearer_to_the_safe_similarity() -> None:
    scores, shares = _scores(3, 25, [2.0, 2.0]), []
    for caution in (0.0, SHARED_CAUTION, FITTED_CAUTION):
        found = cautious_weights([scores], 1, caution) * np.array([float(one.std(correction=0)) for one in scores])
        shares.append(found[1] / found.sum())
    assert shares == sorted(shares)
    assert shares[2] > 0.7 > shares[0]
