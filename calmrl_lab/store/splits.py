"""Splits: whole groups of items assigned to train, validation and test, close to the wanted fractions, whatever the order of items."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from calmrl_lab.errors import CalmrlError

FRACTIONS = {"train": 0.6, "validation": 0.15, "test": 0.25}
# What people call the splits, in small letters.
_SPELLINGS = {
    "train": ("train", "training", "trn", "tr"),
    "validation": ("validation", "validate", "valid", "val", "dev", "devel"),
    "test": ("test", "testing", "tst", "te"),
}
_SPLITS = {word: split for split, words in _SPELLINGS.items() for word in words}


def split_named(text: str) -> str | None:
    """The split that people mean by a name (`Train`, `val`, `dev`), or None if it is none of theirs.

    >>> split_named("Dev"), split_named("holdout")
    ('validation', None)
    """
    return _SPLITS.get(text.strip().lower())


def assign_splits(
    groups: Shaped[np.ndarray, " n"], fractions: Mapping[str, float] = FRACTIONS, seed: int = 0
) -> Shaped[np.ndarray, " n"]:
    """The split of each item, [n] str, from its group, [n] str.

    Every split gets its fraction of the items as nearly as whole groups allow: groups are placed from large to small, each
    into a split drawn in proportion to the room left there, among those it fits into (if none, the one with most room).
    What decides is a hash of seed and group name, so items may come in any order. Raises CalmrlError unless the fractions
    are >= 0 and add up to 1.
    """
    if not fractions or min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1) > 1e-9:
        raise CalmrlError(f"split fractions must be >= 0 and add up to 1, got {dict(fractions)}")
    unique, inverse, counted = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True, return_counts=True)
    names, counts = unique.tolist(), counted.tolist()
    draws = [_uniform(f"{seed}:{name}") for name in names]
    room = _targets(len(inverse), np.array(list(fractions.values()))).tolist()
    chosen = np.zeros(len(names), dtype=np.int64)
    # Small groups come last and even out what the large ones left. Plain numbers: there may be a group for every item.
    for negative, _, name, index in sorted(zip([-count for count in counts], draws, names, range(len(names)), strict=True)):
        count = -negative
        edges = list(accumulate(left if left >= count else 0 for left in room))
        if edges[-1]:
            # The draw that decides the place in the queue must not decide the split as well.
            split = bisect_right(edges, _uniform(f"{seed}/{name}") * edges[-1])
        else:
            split = room.index(max(room))
        chosen[index] = split
        room[split] -= count
    return np.array(list(fractions), dtype=np.str_)[chosen[inverse]]


class DividedGroup(NamedTuple):
    """A group in two splits: `item`, the position of its first item in the split `other`, after one in the split `one`."""

    group: str
    item: int
    one: str
    other: str


def first_divided_group(group: Shaped[np.ndarray, " n"], split: Shaped[np.ndarray, " n"]) -> DividedGroup | None:
    """The first group whose items are not all in one split; None if every group is whole."""
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    home = split[first[inverse]]
    odd = np.flatnonzero(split != home)
    return DividedGroup(str(group[odd[0]]), int(odd[0]), str(home[odd[0]]), str(split[odd[0]])) if len(odd) else None


def _uniform(text: str) -> float:
    """A number in [0, 1) that depends on `text` only."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


def _targets(total: int, fractions: np.ndarray) -> np.ndarray:
    """Whole numbers that add up to `total`, by largest remainders."""
    exact = total * fractions
    whole = np.floor(exact).astype(np.int64)
    for index in np.argsort(whole - exact, kind="stable")[: total - int(whole.sum())]:
        whole[index] += 1
    return whole


def group_by_links(n: int, pairs: Iterable[tuple[int, int]]) -> Int[np.ndarray, " n"]:
    """Items linked directly or through others -> one group: for each of `n` items the smallest item number of its group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    if len(ends) and not (ends.min() >= 0 and ends.max() < n):
        raise CalmrlError(
            f"a link names item {int(ends.max() if ends.max() >= n else ends.min())}; there are items 0 to {n - 1}"
        )
    links = coo_array((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(n, n))
    _, component = connected_components(links, directed=False)
    # Components are numbered by anything; their first members are not.
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return first[inverse]
