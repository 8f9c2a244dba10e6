"""A matrix of scores to ranks, recalls, intervals and comparisons, against slow twins and against the ranks of embeddings."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import calmrl_lab
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.retrieval import rank_both
from calmrl_lab.evaluation.score_matrix import evaluate_matrix


def slow(scores, right):
    """The counts of every query, one candidate at a time."""
    found = []
    for row, wanted in zip(scores.tolist(), right.tolist(), strict=True):
        own = [score for score, yes in zip(row, wanted, strict=True) if yes]
        others = [score for score, yes in zip(row, wanted, strict=True) if not yes]
        if not own:
            found.append((0, 0, 0, 0, len(row)))
            continue
        best = max(own)
        above, tied = sum(score > best for score in others), sum(score == best for score in others)
        found.append((above, tied, own.count(best), len(own), len(row)))
    return np.array(found).T.tolist()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_counts_are_those_of_looking_at_every_candidate(data):
    shape = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    dtype = data.draw(st.sampled_from([np.float64, np.float32, np.int64]))
    scores = data.draw(arrays_of.arrays(dtype, shape, elements=st.integers(-2, 2)))
    right = data.draw(arrays_of.arrays(bool, shape).filter(lambda found: found.any()))
    ranks = evaluate_matrix(scores, right).ranks
    assert [list(part) for part in vars(ranks).values()] == slow(scores, right)


def test_minus_infinity_is_a_score_like_any_other():
    found = evaluate_matrix(np.array([[-np.inf, -np.inf, 0.0]]), np.array([1])).ranks
    assert [part.item() for part in vars(found).values()] == [1, 1, 1, 1, 3]


def test_ranks_are_those_of_embeddings_in_both_directions():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(50, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    owner = torch.arange(50) // 2
    forward, backward = rank_both(left, right, owner, owner)
    positives = owner[:, None] == owner
    for found, wanted in ((left @ right.T, forward), (right @ left.T, backward)):
        ranks = evaluate_matrix(found, positives).ranks
        for part, expected in zip(vars(ranks).values(), vars(wanted).values(), strict=True):
            assert (part == expected).all()


def test_blocks_do_not_change_anything(monkeypatch):
    scores = np.random.default_rng(0).normal(size=(9, 9)).round(1)
    one = evaluate_matrix(scores).ranks
    monkeypatch.setattr("calmrl_lab.evaluation.score_matrix._BLOCK", 20)
    for part, other in zip(vars(one).values(), vars(evaluate_matrix(scores).ranks).values(), strict=True):
        assert (part == other).all()


def test_intervals_tables_and_comparisons():
    generator = np.random.default_rng(0)
    signal = np.eye(200) * 3
    good, bad = (evaluate_matrix(signal / noise + generator.normal(size=(200, 200))) for noise in (1, 2))
    assert calmrl_lab.evaluate_matrix is evaluate_matrix
    found = good.interval(1)
    assert found.low < found.value < found.high
    table = good.table()
    assert table["recall_at_1"].item() == pytest.approx(100 * found.value)
    assert table["queries"].item() == 200
    difference = good.compare(bad)
    assert difference.value == pytest.approx(good.recall().mean() - bad.recall().mean())
    assert difference.verdict == 1
    assert good.compare(good).verdict == 0


def test_groups_are_resampled_together():
    scores = np.repeat(np.random.default_rng(0).normal(size=(30, 30)), 4, axis=0)
    alone = evaluate_matrix(scores, np.repeat(np.arange(30), 4))
    together = evaluate_matrix(scores, np.repeat(np.arange(30), 4), groups=np.repeat(np.arange(30), 4))
    widths = [found.interval(10).high - found.interval(10).low for found in (alone, together)]
    assert widths[1] > 1.5 * widths[0]


def test_queries_without_a_positive_are_in_no_mean():
    right = np.array([[True, False], [False, False]])
    found = evaluate_matrix(np.array([[1.0, 0.0], [1.0, 0.0]]), right)
    assert np.isnan(found.recall(1)[1])
    assert found.interval(1).value == 1
    assert found.table()["queries"].item() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(3),), r"scores are float64 \[3\], expected numbers"),
        ((np.array([["a"]]),), "expected numbers"),
        ((np.array([[1.0, np.nan], [0.0, 1.0]]),), "query 0 and candidate 1 is NaN"),
        ((np.ones((2, 3)),), "2 by 3, so its diagonal does not say"),
        ((np.ones((2, 3)), [0, 3]), "positive of query 1 is candidate 3; there are candidates 0 to 2"),
        ((np.ones((2, 3)), [0.0, 1.0]), r"positives are float64 \[2\], expected bool \[2, 3\] or whole numbers \[2\]"),
        ((np.ones((2, 3)), np.zeros((2, 3), dtype=bool)), "no query has a positive"),
        ((np.eye(2), np.eye(2, dtype=int)), r"positives are int64 \[2, 2\], expected bool"),
        ((np.eye(2), [[0, 1], [1]]), "rows of different length are no matrix"),
        ((np.ones((2, 2)), None, [1]), "groups have 1 entries for 2 queries"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(CalmrlError, match=message):
        evaluate_matrix(*arguments)


def test_other_queries_cannot_be_compared():
    with pytest.raises(CalmrlError, match="do not have the same queries"):
        evaluate_matrix(np.eye(3)).compare(evaluate_matrix(np.eye(4)))
