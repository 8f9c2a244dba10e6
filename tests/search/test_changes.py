"""Items added to an index and removed from it are found, and not found, as if it had been built with them; filters by label."""

import numpy as np
import pytest

from calmrl_lab.errors import CalmrlError
from calmrl_lab.search.changes import add_items, remove_items
from calmrl_lab.search.faiss_index import build_index
from calmrl_lab.search.index_folder import Gallery, build_gallery

pytest.importorskip("faiss", reason="FAISS is not installed (extra cpu or gpu)")


def asked(gallery, store):
    from calmrl_lab.store import FeatureStore

    return gallery.embed("caption", FeatureStore.open(store).features("caption")[:7])


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_a_removed_item_is_found_no_more_and_all_others_are(trained, small_store, tmp_path, kind):
    gallery = build_gallery(trained, tmp_path / "index", split="test", index_type=kind)
    queries = asked(gallery, small_store)
    effort = None if kind == "flat" else gallery.index.lists or 500
    before = gallery.search(queries, len(gallery.items), effort)
    gone = before["id"].iloc[0]
    after = remove_items(tmp_path / "index", [gone]).search(queries, len(gallery.items), effort)
    expected = before[before["id"] != gone]
    assert sorted(after["id"]) == sorted(expected["id"])
    assert (
        after[["query", "id", "group", "pattern"]].sort_values(["query", "id"]).to_numpy().tolist()
        == expected[["query", "id", "group", "pattern"]].sort_values(["query", "id"]).to_numpy().tolist()
    )
    with pytest.raises(CalmrlError, match="has no item"):
        remove_items(tmp_path / "index", [gone])


def test_added_items_are_found_as_if_they_had_been_there(trained, small_store, tmp_path):
    whole = build_gallery(trained, tmp_path / "whole")
    build_gallery(trained, tmp_path / "parts", split="train")
    for split in ("validation", "test"):
        parts = add_items(tmp_path / "parts", small_store, split)
    queries = asked(whole, small_store)
    one, other = (part.search(queries, 5).sort_values(["query", "rank"]) for part in (whole, parts))
    np.testing.assert_allclose(one["score"], other["score"], rtol=1e-5)
    assert set(one["id"]) == set(other["id"])
    with pytest.raises(CalmrlError, match="already"):
        add_items(tmp_path / "parts", small_store, "test")


def test_a_search_is_limited_to_a_label(trained, small_store, tmp_path, cli):
    gallery = build_gallery(trained, tmp_path / "index")
    queries, label = asked(gallery, small_store), gallery.items["label.category"].iloc[0]
    everything = gallery.search(queries, len(gallery.items))
    some = gallery.search(queries, 3, labels={"category": label})
    expected = everything[everything["label.category"] == label].groupby("query").head(3)
    assert some["id"].tolist() == expected["id"].tolist()
    assert gallery.search(queries, 3, labels={"category": "none of these"}).empty
    with pytest.raises(CalmrlError, match="no label"):
        gallery.search(queries, 3, labels={"colour": "red"})
    words = ("search", "--index", tmp_path / "index", "--item", gallery.items["id"].iloc[0], "--json")
    code, _, err = cli(*words, "--label", f"category={label}")
    assert code == 0, err
    assert cli(*words, "--label", "nonsense")[0] == 2


def test_records_are_the_rows_of_a_search(trained, small_store, tmp_path):
    gallery = build_gallery(trained, tmp_path / "index", split="test")
    queries = asked(gallery, small_store)
    rows = gallery.search(queries, 4).to_dict("records")
    flat = [{"query": number, **row} for number, found in enumerate(gallery.records(queries, 4)) for row in found]
    assert [{**row, "score": pytest.approx(row["score"])} for row in rows] == flat


def test_the_commands_change_an_index(trained, small_store, tmp_path, cli):
    out = tmp_path / "index"
    assert cli("index", "--run", trained.path, "--out", out, "--split", "train")[0] == 0
    code, _, err = cli("index", "add", "--index", out, "--store", small_store, "--split", "test")
    assert code == 0, err
    some = Gallery.open(out).items["id"].tolist()[:2]
    code, _, err = cli("index", "remove", "--index", out, "--item", some[0], "--item", some[1])
    assert code == 0, err
    assert not set(some) & set(Gallery.open(out).items["id"])
    code, _, err = cli("index", "--run", trained.path)
    assert code == 2
    assert "needs a run and a folder" in err


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_vectors_come_back_as_they_were_added(kind):
    rows = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    places = np.array([0, 17, 299])
    np.testing.assert_array_equal(build_index(rows, kind).vectors(places), rows[places])
