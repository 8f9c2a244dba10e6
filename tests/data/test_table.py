"""Padded batches from ragged rows: the right row, the right mask, every item once per epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calmrl_lab.data.table import FeatureTable, load_table
from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore
from calmrl_lab.training.train import train_heads


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


def test_float16_rows_stay_float16_and_are_used_as_float32(small_store):
    store = FeatureStore.open(small_store)
    table = load_table(store)
    assert all(rows.dtype == torch.float16 for rows in table.rows)
    first = table.first_rows()
    assert all(rows.dtype == torch.float32 for rows in first)
    batch = next(table.batches(32, torch.Generator().manual_seed(0)))
    for j in range(len(store.modalities)):
        shown = batch.mask[:, j]
        assert torch.equal(batch.features[j][shown], first[j][batch.items][shown]) or (table.offsets[j].diff() > 1).any()


def test_a_sample_and_the_blocks_of_a_table_are_the_same_in_memory_and_streamed(small_store, monkeypatch):
    from calmrl_lab.data import streaming_table
    from calmrl_lab.data import table as tables

    monkeypatch.setattr(tables, "BLOCK", 70)
    monkeypatch.setattr(streaming_table, "BLOCK", 70)
    store = FeatureStore.open(small_store)
    kinds = load_table(store), streaming_table.open_table(store, None, "cpu", "stream")
    for a, b in [[kind.sample(50) for kind in kinds], *zip(*(kind.blocks() for kind in kinds), strict=True)]:
        assert list(a.ids) == list(b.ids)
        assert all(torch.equal(x, y) for x, y in zip(a.rows, b.rows, strict=True))


def test_every_table_refuses_a_mask_that_shows_what_an_item_lacks(small_store):
    from calmrl_lab.data.streaming_table import open_table

    store = FeatureStore.open(small_store)
    for memory in ("table", "stream"):
        table = open_table(store, None, "cpu", memory)
        hidden = table.mask.clone()
        hidden[:, 0] = False
        assert not table.with_mask(hidden).mask[:, 0].any()
        lacking = table.select(np.flatnonzero(~table.natural_mask()[:, -1].numpy()))
        if len(lacking):
            with pytest.raises(CalmrlError, match="which that item does not have"):
                lacking.with_mask(np.ones((len(lacking), len(table.modalities)), dtype=bool))


@pytest.mark.parametrize("factor", [1e200, 1e39, 1e-45, 1e-200])
def test_float64_features_that_float32_cannot_hold_are_refused_by_name(tmp_path, factor):
    draw = np.random.default_rng(0)
    arrays = {"a": draw.normal(size=(30, 4)), "b": factor * draw.uniform(0.5, 1, size=(30, 3))}
    store = FeatureStore.from_arrays(arrays, path=tmp_path / "s.zarr")
    chosen = {"method": "pmrl", "epochs": 1, "dim": 4, "run": tmp_path / "run"}
    for work in (store.to_torch, lambda: store[0], lambda: train_heads(store, **chosen)):
        with pytest.raises(CalmrlError, match="modality 'b' is .* float32"):
            work()
    with pytest.raises(CalmrlError, match="modality 'b' is .* float32"):
        train_heads(store, memory="stream", **chosen)
