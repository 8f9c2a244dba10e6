"""Ranks against a plain float64 sort: ties, duplicates, several positives, queries without one; any tile, any number of threads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calmrl_lab.errors import CalmrlError
from calmrl_lab.retrieval import discounted_gain, expected_rank, rank_both, recall, reciprocal_rank


def slow_ranks(scores, query_owner, gallery_owner):
    """Query by query, candidate by candidate."""
    rows = []
    for i, own in enumerate(query_owner):
        positives = [scores[i, j] for j, other in enumerate(gallery_owner) if other == own]
        if not positives:
            rows.append((0, 0, 0))
            continue
        best = max(positives)
        greater = sum(s > best for s in scores[i])
        equal = sum(s == best for j, s in enumerate(scores[i]) if gallery_owner[j] != own)
        rows.append((greater, equal, len(positives)))
    return np.array(rows).reshape(-1, 3)


def check(ranks, expected):
    np.testing.assert_array_equal(np.stack([ranks.greater, ranks.equal, ranks.positives], axis=1), expected)


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
    assert recall(ranks.greater, ranks.equal, 1).mean() == pytest.approx(4 / 9)
    assert recall(ranks.greater, ranks.equal, 1, "optimistic").mean() == pytest.approx(2 / 3)
    assert recall(ranks.greater, ranks.equal, 1, "pessimistic").mean() == pytest.approx(1 / 3)
    assert expected_rank(ranks.greater, ranks.equal).tolist() == [1, 2, 2]
    assert reciprocal_rank(ranks.greater, ranks.equal).tolist() == pytest.approx([1, 1 / 2, (1 + 1 / 2 + 1 / 3) / 3])
    thirds = (1 + 1 / np.log2(3) + 1 / np.log2(4)) / 3
    assert discounted_gain(ranks.greater, ranks.equal).tolist() == pytest.approx([1, 1 / np.log2(3), thirds])


def test_every_item_twice_ties_with_its_double():
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(50, 16, generator=generator), dim=1).repeat(2, 1)
    ranks, _ = rank_both(z, z, torch.arange(100), torch.arange(100))
    assert (ranks.greater == 0).all()
    assert (ranks.equal == 1).all()
    assert recall(ranks.greater, ranks.equal, 1).mean() == 0.5


@pytest.mark.parametrize("tile", [7, 64, 300, 4096])
def test_tiles_and_threads_change_nothing(tile):
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.nn.functional.normalize(torch.randn(300, 64, generator=generator), dim=1) for _ in range(2))
    owner = torch.arange(300)
    expected, _ = rank_both(left, right, owner, owner)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        got, _ = rank_both(left, right, owner, owner, tile=tile)
    finally:
        torch.set_num_threads(before)
    assert (got.equal == 0).all()  # a positive never ties with itself
    assert np.abs(got.greater - expected.greater).max() <= 1
    assert (got.greater != expected.greater).mean() < 0.02


def test_a_nan_is_refused():
    z = torch.ones(3, 2)
    with pytest.raises(CalmrlError, match="not a number"):
        rank_both(z, torch.full((3, 2), float("nan")), torch.arange(3), torch.arange(3))


def test_recall_starts_at_one():
    with pytest.raises(CalmrlError, match="from 1"):
        recall(np.zeros(1), np.zeros(1), 0)
