"""Ranks against a plain float64 sort: ties, duplicates, several positives, queries without one; any tile, any number of threads."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation import rank_counts as tiles
from calmrl_lab.evaluation.retrieval import Ranks, discounted_gain, expected_rank, rank_both, recall, reciprocal_rank


def slow_ranks(scores, query_owner, gallery_owner):
    """Query by query, candidate by candidate: greater, equal, best positives, positives."""
    rows = []
    for i, own in enumerate(query_owner):
        positives = [scores[i, j] for j, other in enumerate(gallery_owner) if other == own]
        if not positives:
            rows.append((0, 0, 0, 0))
            continue
        best = max(positives)
        greater = sum(s > best for s in scores[i])
        equal = sum(s == best for j, s in enumerate(scores[i]) if gallery_owner[j] != own)
        rows.append((greater, equal, sum(s == best for s in positives), len(positives)))
    return np.array(rows).reshape(-1, 4)


def check(ranks, expected):
    found = np.stack([ranks.greater, ranks.equal, ranks.best_positives, ranks.positives], axis=1)
    np.testing.assert_array_equal(found, expected)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(1, 5), st.integers(0, 9999))
@settings(max_examples=60, deadline=None)
def test_both_directions_equal_a_plain_count(q, g, owners, tile, seed):
    rng = np.random.default_rng(seed)
    # Few distinct small integers: exact products and many ties.
    left = torch.from_numpy(rng.integers(-2, 3, (q, 2)).astype(np.float32))
    right = torch.from_numpy(rng.integers(-2, 3, (g, 2)).astype(np.float32))
    a, b = rng.integers(0, owners, q), rng.integers(0, owners, g)
    forward, backward = rank_both(left, right, torch.from_numpy(a), torch.from_numpy(b), tile=tile)
    scores = left.double().numpy() @ right.double().numpy().T
    check(forward, slow_ranks(scores, a, b))
    check(backward, slow_ranks(scores.T, b, a))


def test_a_hand_checked_case():
    #            caption 0  1  2
    scores = torch.tensor(
        [[0.9, 0.1, 0.1],  # item 0: its caption is first           -> rank 1
         [0.8, 0.7, 0.1],  # item 1: caption 0 is wrongly ahead     -> rank 2
         [0.3, 0.3, 0.3]]  # item 2: three-way tie                  -> rank 1, 2 or 3, each with probability 1/3
    )  # fmt: skip
    owner = torch.arange(3)
    ranks, _ = rank_both(torch.eye(3), scores.T, owner, owner)
    assert ranks.greater.tolist() == [0, 1, 0]
    assert ranks.equal.tolist() == [0, 0, 2]
    assert recall(ranks, 1).mean() == pytest.approx(4 / 9)
    assert expected_rank(ranks).tolist() == [1, 2, 2]
    assert reciprocal_rank(ranks).tolist() == pytest.approx([1, 1 / 2, (1 + 1 / 2 + 1 / 3) / 3])
    thirds = (1 + 1 / np.log2(3) + 1 / np.log2(4)) / 3
    assert discounted_gain(ranks).tolist() == pytest.approx([1, 1 / np.log2(3), thirds])


def test_every_item_twice_ties_with_its_double():
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(50, 16, generator=generator), dim=1).repeat(2, 1)
    ranks, _ = rank_both(z, z, torch.arange(100), torch.arange(100))
    assert (ranks.greater == 0).all()
    assert (ranks.equal == 1).all()
    assert recall(ranks, 1).mean() == 0.5


def float64_ranks(left, right):
    """A plain float64 matrix, ties to 12 digits."""
    scores = left.double().numpy() @ right.double().numpy().T
    own = np.diag(scores)[:, None]
    return np.stack([(scores > own + 1e-12).sum(1), (np.abs(scores - own) <= 1e-12).sum(1) - 1], axis=1)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0, 5.0])
def test_float32_embeddings_are_ranked_as_in_float64(noise):
    generator = torch.Generator().manual_seed(2)
    left = torch.nn.functional.normalize(torch.randn(400, 48, generator=generator), dim=1)
    right = torch.nn.functional.normalize(left + noise * torch.randn(400, 48, generator=generator), dim=1)
    # Close calls on purpose: copies whose scores differ in the last bits of float32, exact copies, and zeros.
    right[200:300] = right[:100] * (1 + 6e-8 * torch.randint(-3, 4, (100, 1), generator=generator))
    right[300:350] = right[:50]
    left[380:], right[390:] = 0, 0
    owner = torch.arange(400)
    for forward in (True, False):
        a, b = (left, right) if forward else (right, left)
        ranks = rank_both(left, right, owner, owner, tile=128)[0 if forward else 1]
        np.testing.assert_array_equal(np.stack([ranks.greater, ranks.equal], axis=1), float64_ranks(a, b))


@pytest.mark.parametrize("tile", [23, 64, 300, 4096])
def test_tiles_and_threads_change_nothing(tile):
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.nn.functional.normalize(torch.randn(300, 64, generator=generator), dim=1) for _ in range(2))
    right[150:] = right[:150]
    owner = torch.arange(300)
    expected = rank_both(left, right, owner, owner)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        got = rank_both(left, right, owner, owner, tile=tile)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one.greater, other.greater)
        np.testing.assert_array_equal(one.equal, other.equal)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_of_low_precision_change_no_rank(precision):
    generator = torch.Generator().manual_seed(4)
    left, right = (torch.nn.functional.normalize(torch.randn(200, 96, generator=generator), dim=1) for _ in range(2))
    owner = torch.arange(200)
    expected, _ = rank_both(left, right, owner, owner)
    lost = (left.bfloat16().float() @ right.bfloat16().float().T).double() - left.double() @ right.double().T
    assert lost.abs().max() > tiles._rounding(left)
    try:
        torch.set_float32_matmul_precision(precision)
        # Whether or not this processor makes use of the permission, the margin covers what it may lose.
        assert lost.abs().max() < tiles._rounding(left)
        ranks, _ = rank_both(left, right, owner, owner)
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(ranks.greater, expected.greater)
    np.testing.assert_array_equal(ranks.equal, expected.equal)


def ranks_of(greater, equal, best, candidates=1000):
    parts = (np.atleast_1d(np.asarray(part, dtype=np.int64)) for part in (greater, equal, best, best, candidates))
    return Ranks(*parts)


@given(st.integers(0, 3), st.integers(0, 3), st.integers(1, 3), st.integers(1, 8))
@settings(max_examples=80, deadline=None)
def test_ties_are_the_mean_over_all_orders_of_the_tied(greater, equal, best, k):
    orders = set(itertools.permutations([True] * best + [False] * equal))
    first = np.array([greater + 1 + order.index(True) for order in orders], dtype=float)
    ranks = ranks_of(greater, equal, best)
    assert recall(ranks, k)[0] == pytest.approx((first <= k).mean(), abs=1e-12)
    assert expected_rank(ranks)[0] == pytest.approx(first.mean())
    assert reciprocal_rank(ranks)[0] == pytest.approx((1 / first).mean())
    assert discounted_gain(ranks)[0] == pytest.approx((1 / np.log2(1 + first)).mean())


@given(st.integers(0, 30), st.integers(0, 200), st.integers(1, 20), st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_many_tied_candidates_are_hypergeometric(greater, equal, best, k):
    ranks, places = ranks_of(greater, equal, best), max(k - greater, 0)
    tied = equal + best
    missed = math.comb(equal, places) / math.comb(tied, places) if places <= tied else 0.0
    assert recall(ranks, k)[0] == pytest.approx(1 - missed, abs=1e-12)
    chances = [math.comb(tied - r, best - 1) / math.comb(tied, best) for r in range(1, equal + 2)]
    assert reciprocal_rank(ranks)[0] == pytest.approx(sum(c / (greater + r) for r, c in enumerate(chances, 1)))
    assert expected_rank(ranks)[0] == pytest.approx(sum(c * (greater + r) for r, c in enumerate(chances, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_right_answers_at_one_point_are_found_as_often_as_by_chance(dtype):
    # 20 clips with 5 captions each, all alike: each of the 100 captions may come first, and 5 of them are right.
    clips, captions = torch.ones(20, 4, dtype=dtype) / 2, torch.ones(100, 4, dtype=dtype) / 2
    ranks, back = rank_both(clips, captions, torch.arange(20), torch.arange(20).repeat_interleave(5))
    found = [100 * recall(ranks, k).mean() for k in (1, 5, 10)]
    assert found == pytest.approx([5.0, 23.04, 41.62], abs=0.01)
    assert expected_rank(ranks).mean() == pytest.approx(101 / 6)
    assert [100 * recall(back, k).mean() for k in (1, 5, 10)] == pytest.approx([5.0, 25.0, 50.0])


def test_half_precision_is_ranked_in_float32():
    z = torch.nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    ranks, _ = rank_both(z.half(), z.half(), torch.arange(20), torch.arange(20))
    assert (ranks.greater == 0).all()


def test_one_item_and_none():
    one = torch.ones(1, 4)
    ranks, _ = rank_both(one, one, torch.arange(1), torch.arange(1))
    assert (ranks.greater.tolist(), ranks.equal.tolist(), ranks.candidates.tolist()) == ([0], [0], [1])
    ranks, back = rank_both(one, torch.zeros(0, 4), torch.arange(1), torch.arange(0))
    assert (ranks.positives.tolist(), len(back.greater)) == ([0], 0)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(CalmrlError, match="an owner per row"):
        rank_both(torch.ones(3, 2), torch.ones(3, 2), torch.arange(2), torch.arange(3))
    with pytest.raises(CalmrlError, match="embeddings"):
        rank_both(torch.ones(3, 2), torch.ones(3, 4), torch.arange(3), torch.arange(3))


def test_a_nan_is_refused():
    z = torch.ones(3, 2)
    with pytest.raises(CalmrlError, match="not a number"):
        rank_both(z, torch.full((3, 2), float("nan")), torch.arange(3), torch.arange(3))


def test_recall_starts_at_one():
    with pytest.raises(CalmrlError, match="from 1"):
        recall(ranks_of(0, 0, 1), 0)
