"""Splits by group: whole groups, near the fractions, whatever the order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import assign_splits, group_by_links


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=60), seed=st.integers(0, 5))
def test_groups_stay_whole_and_order_does_not_matter(sizes, seed):
    groups = np.repeat([f"g{i}" for i in range(len(sizes))], sizes)
    split = assign_splits(groups, seed=seed)
    for group in set(groups.tolist()):
        assert len(set(split[groups == group].tolist())) == 1
    order = np.random.default_rng(seed).permutation(len(groups))
    assert (assign_splits(groups[order], seed=seed) == split[order]).all()
    # No split is fuller than it should be by more than its largest group.
    for name, fraction in {"train": 0.6, "validation": 0.15, "test": 0.25}.items():
        assert (split == name).sum() <= np.ceil(fraction * len(groups)) + max(sizes)


def test_single_items_meet_the_fractions_exactly():
    split = assign_splits(np.array([f"id {i}" for i in range(1000)]))
    assert {name: int((split == name).sum()) for name in ("train", "validation", "test")} == {
        "train": 600,
        "validation": 150,
        "test": 250,
    }


def test_large_groups_are_not_all_put_into_training():
    groups = np.repeat([f"g{i}" for i in range(500)], [20] * 50 + [1] * 450)
    split = assign_splits(groups)
    large = split[:1000]
    assert 0.45 < (large == "train").mean() < 0.75
    assert abs((split == "test").mean() - 0.25) < 0.001


def test_another_seed_is_another_split():
    groups = np.array([f"id {i}" for i in range(100)])
    assert (assign_splits(groups, seed=0) != assign_splits(groups, seed=1)).any()


@pytest.mark.parametrize("fractions", [{}, {"train": 0.5}, {"train": 1.5, "test": -0.5}])
def test_fractions_that_make_no_sense(fractions):
    with pytest.raises(CalmrlError, match="add up to 1"):
        assign_splits(np.array(["a"]), fractions)


def test_links_join_items_through_others():
    #           0-3, 3-5, 1-2, 4 alone
    assert group_by_links(6, [(3, 0), (5, 3), (2, 1)]).tolist() == [0, 1, 1, 0, 4, 0]
    assert group_by_links(2, []).tolist() == [0, 1]
    with pytest.raises(CalmrlError, match="a link names item 2"):
        group_by_links(2, [(0, 2)])
