"""Sampling rules: which frames of a clip and which slices of a sound are used. Pure functions, without decoding anything."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def segments(count: int, parts: int) -> list[tuple[int, int]]:
    """`parts` contiguous half-open ranges over 0..count-1, the first `count % parts` of them one longer.

    `count` must be at least `parts`, and both at least 1.
    """
    assert 1 <= parts <= count, (count, parts)
    size, longer = divmod(count, parts)
    starts = [i * size + min(i, longer) for i in range(parts + 1)]
    return list(pairwise(starts))


def middle_of_segments(count: int, parts: int) -> list[int]:
    """The lower middle element of each of `parts` segments of 0..count-1: how VAST, GRAM and PMRL look at test clips.

    A list shorter than `parts` is first filled up with its last element. `count` must be at least 1.
    """
    places = _filled(count, parts)
    return [places[start + (stop - start + 1) // 2 - 1] for start, stop in segments(len(places), parts)]


def _filled(count: int, least: int) -> Sequence[int]:
    assert count >= 1, count
    return range(count) if count >= least else [*range(count), *[count - 1] * (least - count)]
