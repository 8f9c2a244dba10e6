"""What is written is what is read: by FeatureStore, and by zarr-python as any other Zarr tool would."""

from __future__ import annotations

import pickle
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from numpy.testing import assert_array_equal

from calmrl_lab.store import FeatureStore, ModalitySpec, offsets_of, write_store
from calmrl_lab.store import writer as writing_module
from calmrl_lab.store.disk import arrays as arrays_module

from .conftest import COUNTS, IDS, REASON, parts


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_part_comes_back(store_path, five):
    store = FeatureStore.open(store_path)
    assert len(store) == 5
    assert store.modalities == ("vision", "audio", "caption")
    assert store.dims == {"vision": 4, "audio": 3, "caption": 2}
    assert store.ids.tolist() == IDS
    assert store.ids.dtype.kind == "U"
    assert store.split.tolist() == five["split"]
    assert store.group.tolist() == five["group"]
    assert {name: values.tolist() for name, values in store.labels.items()} == five["labels"]
    assert_array_equal(store.mask, COUNTS > 0)
    assert_array_equal(store.reason, REASON)
    assert (store.dataset, store.licence, store.attribution) == ("five", "CC0", "nobody — at all")
    assert store.attributes["preset"] == "demo"
    assert store.provenance == {"when": "now"}
    assert store.failures() == five["failures"]
    assert_array_equal(store.heads["contra_head_v"], five["heads"]["contra_head_v"])
    for modality, rows in five["features"].items():
        assert_array_equal(store.features(modality), rows)
        assert store.features(modality).dtype == np.float16
        assert_array_equal(store.offsets(modality), five["offsets"][modality])
        picked = np.array([len(rows) - 1, 0, 0])
        assert_array_equal(store.rows(modality, picked), rows[picked])
    assert store.spec("audio") == five["modalities"][1]


def test_zarr_python_reads_the_same(store_path, five):
    group = zarr.open_group(store_path, mode="r")
    assert group.attrs["format"] == "calmrl-features"
    assert group["ids"][:].tolist() == IDS
    assert group["label/sub group"][:].tolist() == five["labels"]["sub group"]
    assert_array_equal(group["mask"][:], COUNTS > 0)
    assert_array_equal(group["reason"][:], REASON)
    for modality, rows in five["features"].items():
        assert_array_equal(group[f"features/{modality}"][:], rows)
        assert_array_equal(group[f"offsets/{modality}"][:], five["offsets"][modality])
    assert sorted(group["heads"].keys()) == ["contra_head_v"]


def test_equal_input_gives_equal_bytes_and_only_provenance_may_differ(tmp_path):
    first = write_store(tmp_path / "a.zarr", **parts())
    second = write_store(tmp_path / "b.zarr", **{**parts(), "provenance": {"when": "later"}})
    one, two = contents(first), contents(second)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == ["provenance.json"]
    assert FeatureStore.open(first).digest == FeatureStore.open(second).digest


def test_another_value_gives_another_digest(tmp_path, five, store_path):
    five["labels"]["category"][0] = "w"
    other = write_store(tmp_path / "other.zarr", **five)
    assert FeatureStore.open(other).digest != FeatureStore.open(store_path).digest


def test_a_store_survives_pickling_after_rows_were_mapped(store_path, five):
    store = FeatureStore.open(store_path)
    store.rows("vision", [0])
    assert_array_equal(pickle.loads(pickle.dumps(store)).features("vision"), five["features"]["vision"])


TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_store_round_trips(tmp_path_factory, data):
    n, k = data.draw(st.integers(1, 9), "items"), data.draw(st.integers(1, 4), "modalities")
    counts = np.array(data.draw(st.lists(st.lists(st.integers(0, 3), min_size=k, max_size=k), min_size=n, max_size=n)))
    counts[counts.sum(axis=1) == 0, 0] = 1
    ids = data.draw(st.lists(TEXT, min_size=n, max_size=n, unique=True))
    chunk = data.draw(st.integers(1, 5), "rows per chunk")
    random = np.random.default_rng(0)
    specs = [ModalitySpec(f"m{j}", "e", "f", j + 1, ("float16", "float32", "float64")[j % 3]) for j in range(k)]
    offsets = {spec.name: offsets_of(counts[:, j]) for j, spec in enumerate(specs)}
    rows = {s.name: random.standard_normal((offsets[s.name][-1], s.dimension)).astype(s.dtype) for s in specs}
    # The same rows as blocks of odd sizes: what a join of extraction blocks passes in.
    pieces = {name: iter(np.array_split(values, 3)) for name, values in rows.items()}
    path = tmp_path_factory.mktemp("stores") / "any.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing_module, "CHUNK_ROWS", chunk)
        write_store(
            path, dataset="any", modalities=specs, ids=ids, split=["train"] * n, group=ids, features=pieces, offsets=offsets
        )
    store = FeatureStore.open(path)
    assert store.ids.tolist() == ids
    assert_array_equal(store.mask, counts > 0)
    for name, values in rows.items():
        assert_array_equal(store.features(name), values)
        index = random.integers(0, len(values), 7) if len(values) else np.empty(0, dtype=int)
        assert_array_equal(store.rows(name, index), values[index])
        assert_array_equal(store.feature_range(name, len(values) // 3, len(values)), values[len(values) // 3 :])
        assert_array_equal(zarr.open_group(path, mode="r")[f"features/{name}"][:], values)


@pytest.mark.parametrize("options", [{"compressors": "auto"}, {"shards": (4, 4)}, {"chunks": (2, 3)}])
def test_any_other_zarr_layout_is_read_through_zarr(store_path, five, options):
    """A user re-chunks the features with zarr-python, which neither knows nor writes digest.json."""
    group = zarr.open_group(store_path, mode="r+")
    del group["features/vision"]
    options = {"chunks": (2, 4), "compressors": None} | options
    group.create_array("features/vision", data=five["features"]["vision"], **options)
    attributes = dict(group.attrs)
    del attributes["checksums"]
    group.attrs.put(attributes)
    (store_path / "digest.json").unlink()
    store = FeatureStore.open(store_path)
    assert_array_equal(store.features("vision"), five["features"]["vision"])
    assert_array_equal(store.rows("vision", [2, 0, 2]), five["features"]["vision"][[2, 0, 2]])
    assert_array_equal(store.rows("vision", []), five["features"]["vision"][:0])
    assert len(store.digest) == 64


def test_a_whole_store_written_by_zarr_python_opens(tmp_path, five):
    counts = COUNTS.copy()
    group = zarr.create_group(tmp_path / "z.zarr", attributes={
        "format": "calmrl-features", "version": 1, "dataset": "z", "licence": "CC0",
        "modalities": [spec.to_dict() for spec in five["modalities"]],
    })  # fmt: skip
    for name in ("ids", "split", "group"):
        group.create_array(name, shape=(5,), dtype=str)[:] = np.array(five[name], dtype=object)
    group.create_array("mask", data=counts > 0)
    group.create_array("reason", data=REASON)
    for modality, rows in five["features"].items():
        group.create_array(f"features/{modality}", data=rows)
        group.create_array(f"offsets/{modality}", data=five["offsets"][modality])
    store = FeatureStore.open(tmp_path / "z.zarr")
    assert store.ids.tolist() == IDS
    assert store.ids.dtype.kind == "U"
    assert store.labels == {}
    for modality, rows in five["features"].items():
        assert_array_equal(store.features(modality), rows)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory in use as Linux counts it")
@pytest.mark.parametrize("at_once", [1000, 10], ids=["blocks", "here and there"])
def test_rows_that_were_read_do_not_stay_in_memory(at_once, tmp_path, monkeypatch):
    """12 MB, by blocks and by few rows: both once ended with all of it mapped, which counts as memory of the process."""
    monkeypatch.setattr(writing_module, "CHUNK_ROWS", 1000)
    monkeypatch.setattr(arrays_module, "_MOST_KEPT", 4 << 20)
    n, ids = 6_000, [str(number) for number in range(6_000)]
    rows = np.random.default_rng(0).normal(size=(n, 1024)).astype(np.float16)
    path = tmp_path / "wide.zarr"
    write_store(
        path, dataset="wide", modalities=[ModalitySpec("a", "a", "a", 1024)], ids=ids, split=["train"] * n, group=ids,
        features={"a": iter([rows])}, offsets={"a": offsets_of(np.ones(n, dtype=bool))},
    )  # fmt: skip
    store = FeatureStore.open(path)
    store.rows("a", [0])
    before = mapped_bytes()
    for start in range(0, n, 500):
        index = np.arange(start, start + at_once) % n
        assert_array_equal(store.rows("a", index), rows[index])
    assert mapped_bytes() - before < 6 << 20


def mapped_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))
