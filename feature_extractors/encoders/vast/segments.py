"""Which of a list's elements VAST looks at: one from each of n contiguous segments."""

from __future__ import annotations

from itertools import pairwise


def middle_of_segments(count: int, segments: int) -> list[int]:
    """The lower middle element of each of `segments` contiguous parts of 0..count-1, the first parts one longer where they must be.

    A list shorter than `segments` is first filled up with its last element. `count` must be at least 1.
    """
    assert count >= 1, count
    places = [*range(count), *[count - 1] * (segments - count)]
    size, longer = divmod(len(places), segments)
    starts = [i * size + min(i, longer) for i in range(segments + 1)]
    return [places[start + (stop - start + 1) // 2 - 1] for start, stop in pairwise(starts)]
