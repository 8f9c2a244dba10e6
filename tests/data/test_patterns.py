"""Patterns of a mask against their plain definition, and masks that show too much."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calmrl_lab.data.missingness import pattern_names
from calmrl_lab.data.patterns import Patterns, require_hiding
from calmrl_lab.errors import CalmrlError

masks = st.integers(1, 6).flatmap(lambda k: st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=1, max_size=40))


@given(masks, st.booleans())
def test_patterns_are_the_distinct_rows_with_their_items(rows, as_torch):
    mask = torch.tensor(rows) if as_torch else np.array(rows)
    found = Patterns.of(mask)
    distinct = sorted({tuple(row) for row in rows}, key=lambda row: sum(seen << j for j, seen in enumerate(row)))
    assert [tuple(row) for row in found.shown.tolist()] == distinct
    assert found.shown[found.which].tolist() == rows
    assert found.counts.tolist() == [rows.count(list(row)) for row in distinct]
    for pattern, row in zip(found, distinct, strict=True):
        assert pattern.observed == tuple(j for j, seen in enumerate(row) if seen)
        assert sorted((*pattern.observed, *pattern.missing)) == list(range(len(row)))
        assert pattern.rows.tolist() == [i for i, other in enumerate(rows) if tuple(other) == row]
    names = tuple("abcdef")[: len(rows[0])]
    assert pattern_names(np.array(rows), names) == [
        "+".join(n for n, seen in zip(names, row, strict=True) if seen) or "none" for row in rows
    ]


@given(masks)
def test_a_mask_may_hide_and_never_show_more(rows):
    known = torch.tensor(rows)
    require_hiding(known & (torch.rand(known.shape) < 0.5), known)
    if not known.all():
        item, place = (int(index[0]) for index in (~known).nonzero(as_tuple=True))
        wider = known.clone()
        wider[item, place] = True
        with pytest.raises(CalmrlError, match=f"modality {place} of item {item}, which"):
            require_hiding(wider, known)
