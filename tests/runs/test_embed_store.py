"""Embeddings of a store, written in three forms through the real command line."""

import json

import numpy as np
import pytest

from calmrl_lab.runs.embed_store import embed_store
from calmrl_lab.store import FeatureStore


@pytest.fixture(scope="module")
def expected(trained, small_store):
    found = trained.model().embed(FeatureStore.open(small_store), split="test")
    dense = found.items.numpy().copy()
    dense[~found.mask.numpy()] = np.nan
    return found, {name: dense[:, j] for j, name in enumerate(found.modalities)}


def test_npz(cli, trained, expected, tmp_path):
    found, dense = expected
    code, out, _ = cli("embed", "--run", trained.path, "--split", "test", "--out", tmp_path / "e.npz")
    assert (code, f"{len(found)} items" in out) == (0, True)
    written = np.load(tmp_path / "e.npz", allow_pickle=False)
    assert written["ids"].tolist() == found.ids.tolist()
    assert (written["mask"] == found.mask.numpy()).all()
    assert "CC BY-SA" in str(written["licence"])
    for name, values in dense.items():
        np.testing.assert_allclose(written[name], values, atol=1e-6)


def test_parquet(cli, trained, expected, tmp_path):
    import pandas as pd

    found, dense = expected
    code, out, _ = cli("embed", "--run", trained.path, "--split", "test", "--out", tmp_path / "e.parquet", "--json")
    assert (code, json.loads(out)["items"]) == (0, len(found))
    written = pd.read_parquet(tmp_path / "e.parquet")
    assert written["id"].tolist() == found.ids.tolist()
    for name, values in dense.items():
        for row, vector in zip(values, written[name], strict=True):
            if np.isnan(row).all():
                assert vector is None
            else:
                np.testing.assert_allclose(vector, row, atol=1e-6)


def test_a_store_of_embeddings_has_all_rows(cli, trained, expected, tmp_path, small_store):
    found, dense = expected
    code, _, _ = cli("embed", "--run", trained.path, "--split", "test", "--out", tmp_path / "e.zarr")
    assert code == 0
    store, source = FeatureStore.open(tmp_path / "e.zarr"), FeatureStore.open(small_store)
    assert store.licence == source.licence
    chosen = np.flatnonzero(source.split == "test")
    assert (store.reason == source.reason[chosen]).all()
    for j, name in enumerate(store.modalities):
        assert (np.diff(store.offsets(name)) == np.diff(source.offsets(name))[chosen]).all()
        np.testing.assert_allclose(store.features(name), found.rows[j].numpy(), atol=1e-6)
    for name, values in store.to_dense()[0].items():
        np.testing.assert_allclose(values, dense[name], atol=1e-6)


def test_results_do_not_depend_on_the_size_of_blocks(trained, tmp_path, monkeypatch):
    embed_store(trained, tmp_path / "one.npz")
    monkeypatch.setattr("calmrl_lab.runs.embed_store.BLOCK", 7)
    for form in ("npz", "parquet", "zarr"):
        embed_store(trained, tmp_path / f"small.{form}")
    one, small = np.load(tmp_path / "one.npz"), np.load(tmp_path / "small.npz")
    store = FeatureStore.open(tmp_path / "small.zarr")
    for name, values in store.to_dense()[0].items():
        np.testing.assert_allclose(small[name], one[name], atol=1e-6)
        np.testing.assert_allclose(values, one[name], atol=1e-6)


def test_what_cannot_be_written_is_refused_in_one_sentence(cli, trained, tmp_path):
    code, _, err = cli("embed", "--run", trained.path, "--out", tmp_path / "e.csv")
    assert code == 2
    assert "ends in none of .npz, .parquet, .zarr" in err
    (tmp_path / "there.npz").write_text("")
    code, _, err = cli("embed", "--run", trained.path, "--out", tmp_path / "there.npz")
    assert code == 2
    assert "exists already" in err
    other = FeatureStore.from_arrays({"smell": np.ones((3, 2)), "taste": np.ones((3, 2))}, path=tmp_path / "o.zarr")
    code, _, err = cli("embed", "--run", trained.path, "--store", other.path, "--out", tmp_path / "e.npz")
    assert code == 2
    assert "has none of the modalities of run 'short'" in err
    name = trained.model().modalities[0]
    other = FeatureStore.from_arrays({name: np.ones((3, 2))}, path=tmp_path / "p.zarr")
    code, _, err = cli("embed", "--run", trained.path, "--store", other.path, "--out", tmp_path / "e.npz")
    assert code == 2
    assert f"'{name}' has dimension 2" in err
    assert not (tmp_path / "e.npz").exists()
