"""Streaming gives every wanted item once, with the features the store holds, well mixed and repeatable."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore, ModalitySpec, offsets_of, streaming, write_store


@pytest.fixture
def blocks_of_16(monkeypatch):
    """Blocks of 16 items and buffers of `buffer_chunks` x 64, so that a store of 2,000 items is 'larger than memory'."""
    monkeypatch.setattr(streaming, "BLOCK_ITEMS", 16)
    monkeypatch.setattr(streaming, "CHUNK_ROWS", 64)


def sorted_store(folder, n: int = 2000):
    """Features say where they are from: row = (item, row within the item). Sorted by item, the worst order to stream from."""
    random = np.random.default_rng(0)
    counts = {"a": np.ones(n, dtype=int), "b": random.integers(0, 4, n)}
    rows = {
        name: np.stack([np.repeat(np.arange(n), c), np.concatenate([np.arange(x) for x in c])], axis=1).astype(np.float32)
        for name, c in counts.items()
    }
    path = write_store(
        folder / "sorted.zarr",
        dataset="sorted",
        modalities=[ModalitySpec(name, "e", "f", 2, "float32") for name in counts],
        ids=[f"{i:05}" for i in range(n)],
        split=["train" if i % 3 else "test" for i in range(n)],
        features=rows,
        offsets={name: offsets_of(c) for name, c in counts.items()},
    )
    return FeatureStore.open(path), counts


def test_every_item_once_with_its_own_features(tmp_path, blocks_of_16):
    store, counts = sorted_store(tmp_path)
    batches = list(store.stream(batch_size=100, seed=3))
    assert [len(b.items) for b in batches] == [100] * 20
    items = np.concatenate([b.items for b in batches])
    assert_array_equal(np.sort(items), np.arange(2000))
    for column, name in enumerate(("a", "b")):
        features = np.concatenate([b.features[column] for b in batches])
        mask = np.concatenate([b.mask for b in batches])[:, column]
        assert_array_equal(mask, counts[name][items] > 0)
        assert_array_equal(features[mask, 0], items[mask])
        assert (features[mask, 1] < counts[name][items[mask]]).all()
        assert not features[~mask].any()
    # Of three captions each is drawn about as often.
    three = counts["b"][items] == 3
    drawn = np.bincount(features[three, 1].astype(int), minlength=3) / three.sum()
    assert (np.abs(drawn - 1 / 3) < 0.1).all()


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(tmp_path, blocks_of_16):
    store, _ = sorted_store(tmp_path)
    one, two, other = (list(store.stream(["b"], 64, seed)) for seed in (1, 1, 2))
    for x, y in zip(one, two, strict=True):
        assert_array_equal(x.items, y.items)
        assert_array_equal(x.features[0], y.features[0])
    assert any((x.items != y.items).any() for x, y in zip(one[:-1], other[:-1], strict=True))


def test_only_the_wanted_items(tmp_path, blocks_of_16):
    store, _ = sorted_store(tmp_path)
    train = store.split == "train"
    for items in (train, np.flatnonzero(train)):
        seen = np.concatenate([b.items for b in store.stream(["a"], 50, items=items)])
        assert_array_equal(np.sort(seen), np.flatnonzero(train))
    assert list(store.stream(["a"], items=np.zeros(2000, dtype=bool))) == []


def test_mixing_comes_near_a_full_shuffle(tmp_path, blocks_of_16):
    """Batch means of the item number vary little more than those of a true shuffle; read in order they vary 18 times as much.

    A buffer holds 16 of 125 blocks: a sixteenth of the spread of single blocks stays, 1 + 64/16 = 5 times the variance at most.
    """
    store, _ = sorted_store(tmp_path)
    spread = [np.std([b.items.mean() for b in store.stream(["a"], 64, seed, buffer_chunks=4)]) for seed in range(5)]
    shuffled = np.std(np.arange(2000)) / np.sqrt(64)
    assert np.mean(spread) < np.sqrt(5) * shuffled
    # And neighbours in the store are not neighbours in the stream.
    order = np.concatenate([b.items for b in store.stream(["a"], 64)])
    assert np.mean(np.abs(np.diff(order)) == 1) < 0.03


def test_requests_that_make_no_sense(tmp_path, store_path):
    store = FeatureStore.open(store_path)
    with pytest.raises(CalmrlError, match="no modality 'depth'"):
        store.stream(["depth"])
    with pytest.raises(CalmrlError, match="at least 1"):
        store.stream(batch_size=0)
    with pytest.raises(CalmrlError, match="the store has 0 to 4"):
        store.stream(items=np.array([5]))
    with pytest.raises(CalmrlError, match="expected positions or a mask"):
        store.stream(items=np.array([0.5]))
    with pytest.raises(CalmrlError, match="a mask of 3"):
        store.stream(items=np.zeros(3, dtype=bool))


def test_a_store_without_rows_of_a_modality_streams(tmp_path):
    path = write_store(
        tmp_path / "s.zarr",
        dataset="d",
        modalities=[ModalitySpec("a", "e", "f", 2), ModalitySpec("b", "e", "f", 3)],
        ids=["x", "y"],
        split=["train", "test"],
        features={"a": np.ones((2, 2)), "b": np.empty((0, 3))},
        offsets={"a": np.arange(3), "b": np.zeros(3, dtype=int)},
    )
    (batch,) = FeatureStore.open(path).stream()
    assert batch.mask.tolist() == [[True, False], [True, False]]
    assert batch.features[1].shape == (2, 3)
