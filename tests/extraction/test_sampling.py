"""Sampling tables: which frames of a clip are looked at."""

from __future__ import annotations

import pytest

from feature_extractors.media.sampling import middle_of_segments, segments


@pytest.mark.parametrize(
    ("count", "parts", "expected"),
    [
        (1, 1, [0]),
        (2, 1, [0]),  # the lower middle
        (3, 1, [1]),
        (10, 1, [4]),
        (8, 8, list(range(8))),  # T = N: every frame
        (3, 8, [0, 1, 2, 2, 2, 2, 2, 2]),  # T < N: the last is repeated
        (1, 4, [0, 0, 0, 0]),
        (9, 8, [0, 2, 3, 4, 5, 6, 7, 8]),  # the first segment has two
        (16, 8, [0, 2, 4, 6, 8, 10, 12, 14]),
        (10, 4, [1, 4, 6, 8]),  # 3, 3, 2, 2
        (300, 8, [18, 56, 94, 132, 170, 207, 244, 281]),  # 38, 38, 38, 38, 37, 37, 37, 37
    ],
)
def test_the_lower_middle_of_each_segment(count, parts, expected):
    assert middle_of_segments(count, parts) == expected


@pytest.mark.parametrize("count", [32, 33, 63, 250, 3601])
@pytest.mark.parametrize("parts", [2, 8, 32])
def test_one_from_each_segment_as_the_rule_is_written(count, parts):
    k, m = divmod(count, parts)
    bounds = [(i * k + min(i, m), (i + 1) * k + min(i + 1, m)) for i in range(parts)]
    assert bounds[-1][1] == count
    assert middle_of_segments(count, parts) == [list(range(a, b))[(b - a + 1) // 2 - 1] for a, b in bounds]


def test_segments_cover_everything_in_order():
    assert segments(10, 4) == [(0, 3), (3, 6), (6, 8), (8, 10)]
    assert segments(3, 3) == [(0, 1), (1, 2), (2, 3)]
