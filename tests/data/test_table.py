"""Padded batches from ragged rows: the right row, the right mask, every item once an epoch."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calmrl_lab.data.table import FeatureTable


def table_of(counts):
    """A table whose row values say which item and which row they are: value = 100 * item + row."""
    n, k = len(counts), len(counts[0])
    rows, offsets = [], []
    for j in range(k):
        values = [100 * i + r for i in range(n) for r in range(counts[i][j])]
        rows.append(torch.tensor(values, dtype=torch.float32).reshape(-1, 1))
        offsets.append(torch.tensor([0, *np.cumsum([c[j] for c in counts])]))
    mask = torch.tensor(counts) > 0
    names = tuple(f"m{j}" for j in range(k))
    ids = np.array([f"i{i}" for i in range(n)])
    return FeatureTable(names, ids, ids, tuple(rows), tuple(offsets), mask)


ragged = st.integers(2, 12).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=n, max_size=n)
)


@given(ragged, st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_gather_takes_a_row_of_its_own_item(counts, seed):
    table = table_of(counts)
    items = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
    for generator in (None, torch.Generator().manual_seed(seed)):
        for j, got in enumerate(table.gather(items, generator)):
            for value, item in zip(got[:, 0].tolist(), items.tolist(), strict=True):
                own = counts[item][j]
                assert value == 0 if own == 0 else value - 100 * item in range(own)


def test_several_captions_are_all_drawn():
    table = table_of([[3, 1]] * 4)
    generator = torch.Generator().manual_seed(0)
    seen = {int(v) for _ in range(50) for v in table.gather(torch.arange(4), generator)[0][:, 0]}
    assert seen == {100 * i + r for i in range(4) for r in range(3)}


def test_several_captions_are_all_drawn_where_most_items_have_none():
    table = table_of([[3, 1], *[[0, 1]] * 9])
    generator = torch.Generator().manual_seed(0)
    assert {int(table.gather(torch.arange(1), generator)[0][0, 0]) for _ in range(50)} == {0, 1, 2}


@given(ragged, st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_select_keeps_rows_with_their_items(counts, seed):
    table = table_of(counts)
    chosen = np.random.default_rng(seed).choice(len(counts), size=max(1, len(counts) // 2), replace=False)
    part = table.select(chosen)
    for j in range(2):
        for position, item in enumerate(chosen):
            start, stop = part.offsets[j][position], part.offsets[j][position + 1]
            assert part.rows[j][start:stop, 0].tolist() == [100 * item + r for r in range(counts[item][j])]
    assert torch.equal(part.natural_mask(), part.mask)


@given(st.integers(2, 40), st.integers(2, 9))
@settings(max_examples=50, deadline=None)
def test_batches_show_every_item_once_and_never_one_alone(n, size):
    table = table_of([[1, 1]] * n)
    batches = list(table.batches(size, torch.Generator().manual_seed(n)))
    assert sorted(torch.cat([batch.items for batch in batches]).tolist()) == list(range(n))
    assert all(len(batch.items) > 1 for batch in batches)
