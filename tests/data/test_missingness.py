"""Scenarios: they hide, never un-hide, and decide by item alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmrl_lab.data.missingness import apply_scenario, pattern_names
from calmrl_lab.errors import CalmrlError

FOUR = ("vision", "audio", "caption", "subtitle")
SPECS = [
    "full", "complete-only", "pairs", "pairs:0.5", "drop:audio", "drop:audio,subtitle", "drop:vision@0.3", "random:0.5",
    "pattern:vision+caption/audio+caption", "pairs:0.25+complete-only", "share:0.3", "rest:0.3+pairs", "pattern:vision+caption+random:0.5",
]  # fmt: skip


def naturally_missing(n, seed):
    mask = np.random.default_rng(seed).random((n, 4)) < 0.8
    mask[np.arange(n), np.random.default_rng(seed + 1).integers(0, 4, n)] = True
    return [f"item {i}" for i in range(n)], mask


@pytest.mark.parametrize("spec", SPECS)
@given(seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_a_scenario_hides_and_decides_by_item_alone(spec, seed):
    ids, mask = naturally_missing(40, seed)
    shown, keep = apply_scenario(spec, ids, FOUR, mask, seed)
    assert not (shown & ~mask).any()
    order = np.random.default_rng(seed).permutation(40)[:25]
    again, kept = apply_scenario(spec, [ids[i] for i in order], FOUR, mask[order], seed)
    np.testing.assert_array_equal(again, shown[order])
    np.testing.assert_array_equal(kept, keep[order])


def test_full_hides_nothing():
    ids, mask = naturally_missing(30, 0)
    shown, keep = apply_scenario("full", ids, FOUR, mask, 0)
    np.testing.assert_array_equal(shown, mask)
    assert keep.all()


def test_pairs_show_two_and_a_share_everything():
    ids = [f"i{i}" for i in range(4000)]
    shown, _ = apply_scenario("pairs:0.25", ids, FOUR, np.ones((4000, 4), dtype=bool), 3)
    counts = shown.sum(axis=1)
    assert set(counts.tolist()) == {2, 4}
    assert (counts == 4).mean() == pytest.approx(0.25, abs=0.03)
    pairs, sizes = np.unique(shown[counts == 2], axis=0, return_counts=True)
    assert len(pairs) == 6
    assert sizes / sizes.sum() == pytest.approx(np.full(6, 1 / 6), abs=0.03)


def test_complete_only_after_pairs_keeps_what_pairs_left_complete():
    ids = [f"i{i}" for i in range(500)]
    mask = np.ones((500, 4), dtype=bool)
    shown, _ = apply_scenario("pairs:0.25", ids, FOUR, mask, 3)
    _, keep = apply_scenario("pairs:0.25+complete-only", ids, FOUR, mask, 3)
    np.testing.assert_array_equal(keep, shown.all(axis=1))


def test_random_masks_are_nested_and_never_empty():
    ids, mask = naturally_missing(500, 1)
    previous = mask
    for rate in (0, 0.25, 0.5, 0.75, 0.9, 1):
        shown, _ = apply_scenario(f"random:{rate}", ids, FOUR, mask, 0)
        assert not (shown & ~previous).any()
        assert shown.any(axis=1).all()
        previous = shown
    assert (previous.sum(axis=1) == 1).all()


def test_drop_hides_everywhere_or_in_a_share():
    ids = [f"i{i}" for i in range(2000)]
    mask = np.ones((2000, 4), dtype=bool)
    shown, _ = apply_scenario("drop:audio,subtitle", ids, FOUR, mask, 0)
    assert shown.sum(axis=0).tolist() == [2000, 0, 2000, 0]
    shown, _ = apply_scenario("drop:audio@0.3", ids, FOUR, mask, 0)
    assert shown[:, 1].mean() == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("pears", "unknown scenario 'pears'; did you mean 'pairs'?"),
        ("drop:smell", "unknown modality 'smell'"),
        ("drop:audi", "did you mean 'audio'?"),
        ("drop:", "names no modality"),
        ("pairs:2", "'2' is not a share"),
        ("pairs:some", "'some' is not a share"),
        ("random:-1", "is not a share"),
        ("full:1", "takes no argument"),
        ("pattern:vision+smell", "unknown scenario 'smell'|unknown modality 'smell'"),
        ("", "unknown scenario ''"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(spec, said):
    ids, mask = naturally_missing(5, 0)
    with pytest.raises(CalmrlError, match=said.replace("?", r"\?")):
        apply_scenario(spec, ids, FOUR, mask, 0)


def test_pattern_names_keep_order():
    mask = np.array([[True, False, True, False], [False] * 4, [True] * 4])
    assert pattern_names(mask, FOUR) == ["vision+caption", "none", "vision+audio+caption+subtitle"]
