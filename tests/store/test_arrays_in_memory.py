"""Arrays in memory to a store and back: gaps, several rows, data loaders, data sets, and what is refused."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore

FRAME = pd.DataFrame(np.ones((2, 3)), index=["x", "y"])


def features(seed=0, n=8, dims=(3, 2), gaps=True):
    generator = np.random.default_rng(seed)
    found = {name: generator.normal(size=(n, d)).astype(np.float32) for name, d in zip("ab", dims, strict=True)}
    if gaps:
        found["a"][1] = found["b"][[2, 5]] = np.nan
    return found


def test_what_goes_in_comes_out(tmp_path):
    given_arrays = features()
    store = FeatureStore.from_arrays(given_arrays, ids=[f"x{i}" for i in range(8)], path=tmp_path / "s.zarr")
    dense, mask = store.to_dense()
    for name, values in given_arrays.items():
        np.testing.assert_array_equal(dense[name], values)
        assert dense[name].dtype == values.dtype
    assert mask.tolist() == np.stack([~np.isnan(v).all(axis=1) for v in given_arrays.values()], axis=1).tolist()
    assert store.ids.tolist() == [f"x{i}" for i in range(8)]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_mask_and_dtype_survive(tmp_path_factory, data):
    n, k = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    mask = data.draw(arrays_of.arrays(bool, (n, k)).filter(lambda m: m.any(axis=1).all()))
    dtype = data.draw(st.sampled_from(["float16", "float32", "float64"]))
    given_arrays = {
        f"m{j}": data.draw(arrays_of.arrays(dtype, (n, 2), elements={"allow_nan": False, "allow_infinity": False}))
        for j in range(k)
    }
    store = FeatureStore.from_arrays(given_arrays, mask=mask, path=tmp_path_factory.mktemp("s") / "s.zarr")
    dense, found = store.to_dense()
    assert (found == mask).all()
    for j, (name, values) in enumerate(given_arrays.items()):
        np.testing.assert_array_equal(dense[name], np.where(mask[:, [j]], values, np.nan))
    largest = [np.abs(values[mask[:, j]]).max(initial=0.0) for j, values in enumerate(given_arrays.values())]
    with np.errstate(over="ignore"):
        lost = [np.isinf(np.float32(value)) or 0 < value < np.finfo(np.float32).tiny for value in largest]
    if dtype == "float64" and any(lost):
        with pytest.raises(CalmrlError, match="float32"):
            store.to_torch()
        return
    tensors, shown = store.to_torch()
    assert not any(tensor.isnan().any() or tensor.isinf().any() for tensor in tensors.values())
    assert shown.tolist() == mask.tolist()


def test_the_index_of_data_frames_names_the_items(tmp_path):
    store = FeatureStore.from_arrays(
        {"a": FRAME, "b": np.eye(2), "c": pd.Series([[1.0], None], FRAME.index)}, path=tmp_path / "s.zarr"
    )
    assert store.ids.tolist() == ["x", "y"]
    counted = FRAME.reset_index(drop=True)
    assert FeatureStore.from_arrays({"a": FRAME, "b": counted}, ids="pq", path=tmp_path / "t.zarr").ids.tolist() == ["p", "q"]
    twice = FRAME.set_axis(["x", "x"])
    assert FeatureStore.from_arrays({"a": twice, "b": twice}, path=tmp_path / "u.zarr").ids.tolist() == ["0", "1"]


@pytest.mark.parametrize("dtype", ["float16", "int64"])
def test_rows_of_masked_arrays_are_gaps(tmp_path, dtype):
    values = np.ma.array(np.ones((3, 2), dtype=dtype), mask=np.array([[True, True], [False, False], [False, False]]))
    store = FeatureStore.from_arrays({"a": values, "b": np.eye(3)}, path=tmp_path / "s.zarr")
    assert store.mask[:, 0].tolist() == [False, True, True]


def test_what_is_no_number_of_an_item_is_refused(tmp_path):
    store = FeatureStore.from_arrays(features(), path=tmp_path / "s.zarr")
    for wrong in ("a", slice(2), 1.0, None):
        with pytest.raises(CalmrlError, match="indexed by the number of an item"):
            store[wrong]


def test_lists_may_have_several_rows_and_none(tmp_path):
    store = FeatureStore.from_arrays(
        {"v": np.eye(3), "t": [np.ones((2, 4)), None, [1.0, 2.0, 3.0, 4.0]]}, path=tmp_path / "s.zarr"
    )
    assert np.diff(store.offsets("t")).tolist() == [2, 0, 1]
    assert store.to_dense()[0]["t"][2].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_torch_and_pandas_are_taken(tmp_path):
    import pandas as pd

    column = pd.Series([[1.0, 2.0], float("nan"), None, [3.0, 4.0]])
    half = torch.ones(4, 3, dtype=torch.bfloat16, requires_grad=True)
    store = FeatureStore.from_arrays({"t": column, "v": half, "w": pd.DataFrame(np.eye(4))}, path=tmp_path / "s.zarr")
    assert store.mask[:, 0].tolist() == [True, False, False, True]
    assert store.dims == {"t": 2, "v": 3, "w": 4}


def test_equal_arrays_are_one_store_and_others_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, again = (FeatureStore.from_arrays(features()) for _ in range(2))
    assert first.path == again.path
    assert first.path.parent.name == "stores"
    others = [
        FeatureStore.from_arrays(features(seed=1)),
        FeatureStore.from_arrays(features(), ids=list("abcdefgh")),
        FeatureStore.from_arrays(features(), split=["train"] * 8),
        FeatureStore.from_arrays(features(), labels={"kind": ["x"] * 8}),
    ]
    assert len({store.path for store in (first, *others)}) == 5


def test_a_data_loader_reads_batches_in_any_order(tmp_path):
    given_arrays = features()
    store = FeatureStore.from_arrays(given_arrays, path=tmp_path / "s.zarr")
    seen = {}
    for batch in torch.utils.data.DataLoader(store, batch_size=3, shuffle=True):
        for place, item in enumerate(batch["id"]):
            seen[int(item)] = batch["features"]["a"][place], batch["mask"][place]
    assert sorted(seen) == list(range(8))
    for item, (vector, mask) in seen.items():
        assert mask[0] == (item != 1)
        np.testing.assert_array_equal(vector, np.nan_to_num(given_arrays["a"][item]))
    assert store[-1]["id"] == "7"
    assert len(list(store)) == len(store)
    with pytest.raises(IndexError, match="items 0 to 7, not 8"):
        store[8]
    assert pickle.loads(pickle.dumps(store))[3]["id"] == "3"


def test_split_chooses_items(tmp_path):
    split = ["train"] * 5 + ["val"] + ["test"] * 2
    store = FeatureStore.from_arrays(features(), split=split, path=tmp_path / "s.zarr")
    assert len(store.to_dense("test")[0]["a"]) == 2
    assert len(store.to_torch("validation")[1]) == 1
    with pytest.raises(CalmrlError, match="has no items in split 'tests'; did you mean 'test'"):
        store.to_dense("tests")


def test_hugging_face_data_sets(tmp_path):
    # A folder of this name on the path is importable too: only the package has `Dataset`.
    if not hasattr(pytest.importorskip("datasets", reason="the package 'datasets' is optional"), "Dataset"):
        pytest.skip("the package 'datasets' is optional")
    given_arrays = features()
    store = FeatureStore.from_arrays(given_arrays, labels={"kind": list("xxxxyyyy")}, path=tmp_path / "s.zarr")
    found = store.to_datasets()
    assert found.column_names == ["id", "split", "group", "label/kind", "a", "b"]
    assert found[1]["a"] is None
    np.testing.assert_array_equal(np.array(found[0]["b"], dtype=np.float32), given_arrays["b"][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arrays": {}}, "no arrays were given"),
        ({"arrays": pd.DataFrame({"a": [[1.0]], "b": [[2.0]]})}, "arrays are a DataFrame, expected a dict"),
        ({"arrays": {"a": FRAME, "b": FRAME[::-1]}}, "'a' and 'b' have different indexes, so their rows are not the same items"),
        ({"arrays": {"a": 3}}, "'a' is a int, expected an array"),
        ({"arrays": {"a": np.ones((3, 2)), "b": np.ones((4, 2))}}, r"different numbers of items \(a 3, b 4\)"),
        ({"arrays": {"a": np.ones(3)}}, r"'a' has shape \[3\], expected \[items, dimension\]"),
        ({"arrays": {"a": [1.0, 2.0]}}, r"'a' of item '0' has shape \[\], expected \[d\]"),
        ({"arrays": {"a": [[1.0], [1.0, 2.0]]}}, r"'a' of item '1' has shape \[2\], expected \[1\]"),
        ({"arrays": {"a": [None, None]}}, "no item has 'a'"),
        ({"arrays": {"a": np.array([["x"], ["y"]])}}, "'a' holds no numbers"),
        ({"arrays": {"a": np.array([[1.0, np.nan]])}}, "hold NaN or infinity"),
        ({"arrays": {"a": np.array([[np.nan, np.nan], [1, 1]])}}, "have no modality at all, the first is '0'"),
        ({"arrays": {"a": np.ones((2, 2))}, "mask": np.ones((2, 2), dtype=bool)}, r"the mask is bool \[2, 2\], expected bool \[2, 1\]"),
        ({"arrays": {"a": [None, [1.0]]}, "mask": np.ones((2, 1), dtype=bool)}, "mask says that item '0' shows 'a'"),
        ({"arrays": {"a": np.ones((2, 2))}, "ids": ["x"]}, "1 ids are given for 2 items"),
        ({"arrays": {"a": np.ones((2, 2))}, "ids": ["x", None]}, "the id of item 1 is None"),
        ({"arrays": {"a": np.ones((2, 2))}, "ids": np.array([1.0, np.nan])}, "the id of item 1 is nan"),
        ({"arrays": {"a": np.ones((2, 2))}, "labels": ["x", "y"]}, "labels are a list, expected a dict"),
        ({"arrays": {"a": np.ones((2, 2))}, "split": 0.8}, "split is 0.8, expected train, validation or test for each of the 2 items"),
        ({"arrays": {"a": np.ones((2, 2))}, "split": "train"}, "split is 'train', expected"),
        ({"arrays": {"a": np.ma.array(np.ones((2, 2)), mask=[[0, 0], [0, 1]])}}, "hold NaN or infinity"),
        ({"arrays": {"a": np.ones((2, 2))}, "ids": ["x", "x"]}, "ids must be unique"),
        ({"arrays": {"a": np.ones((2, 2))}, "split": ["train"]}, "split has 1 entries; expected 2"),
        ({"arrays": {"a": np.ones((2, 2))}, "split": ["train", "holdout"]}, "has the split 'holdout'"),
        ({"arrays": {"a": np.ones((2, 2))}, "split": ["train", "test"], "group": ["g", "g"]}, "'g' is in train and in test"),
        ({"arrays": {"a/b": np.ones((2, 2))}}, "modality name 'a/b' cannot be stored"),
        ({"arrays": {"all": np.ones((2, 2))}}, "a modality cannot be named 'all': tables of results"),
        ({"arrays": {"joint": np.ones((2, 2))}}, "a modality cannot be named 'joint': tables of results"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(CalmrlError, match=message):
        FeatureStore.from_arrays(**arguments, path=tmp_path / "s.zarr")
    assert not list(tmp_path.iterdir())


def test_a_store_that_is_there_is_replaced_only_when_asked(tmp_path):
    FeatureStore.from_arrays(features(), path=tmp_path / "s.zarr")
    with pytest.raises(CalmrlError, match="exists"):
        FeatureStore.from_arrays(features(seed=1), path=tmp_path / "s.zarr")
    store = FeatureStore.from_arrays(features(seed=1), path=tmp_path / "s.zarr", overwrite=True)
    np.testing.assert_array_equal(store.to_dense()[0]["a"], features(seed=1)["a"])


def test_training_takes_arrays_and_finds_their_store_again(tmp_path, monkeypatch):
    from calmrl_lab import evaluate, train_heads

    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    common = generator.normal(size=(80, 4))
    given_arrays = {name: common @ generator.normal(size=(4, 6)) + 0.1 * generator.normal(size=(80, 6)) for name in "ab"}
    store = FeatureStore.from_arrays(given_arrays)
    run = train_heads(store, method="closed-form", seed=0)
    table = evaluate(run).table()
    assert set(table["query"]) == {"a", "b"}
    embeddings = run.model().embed(store, split="test")
    assert len(embeddings) == (store.split == "test").sum()
