"""The cosine of the features beside a run: exact, paired, and said aloud where a run is below it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from calmrl_lab.evaluation.evaluate import evaluate
from calmrl_lab.evaluation.feature_reference import below_features, beside_features, feature_rows
from calmrl_lab.store import import_features
from calmrl_lab.training.train import train_heads


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory):
    """Two modalities that share a space of 16 dimensions up to noise, one text with two rows per item, and one of another dimension."""
    folder = tmp_path_factory.mktemp("shared")
    random = np.random.default_rng(0)
    common = random.standard_normal((160, 16)) * np.linspace(2, 0.3, 16)
    ids = np.array([f"i{number:03d}" for number in range(160)])
    for name, rows in {
        "image": common + 0.7 * random.standard_normal((160, 16)) + 1.0,
        "text": common + 0.7 * random.standard_normal((160, 16)),
        "sound": common[:, :5] + 0.5 * random.standard_normal((160, 5)),
    }.items():
        np.savez(folder / f"{name}.npz", ids=ids, features=(3 * rows).astype(np.float32))
    return import_features(
        folder / "s.zarr", {name: f"{folder / name}.npz:features" for name in ("image", "text", "sound")}, ids=list(ids)
    )


def raw(store, folder, method="raw", **settings):
    return train_heads(store, method, run=folder, **settings)


def test_a_run_of_the_features_as_they_are_is_the_reference_itself(shared_store, tmp_path):
    found = evaluate(raw(shared_store, tmp_path / "r"), device="cpu")
    assert {(row["query"], row["gallery"]) for row in found.coverage["features"]} == {("image", "text"), ("text", "image")}
    for row in found.coverage["features"]:
        assert row["difference"] == row["low"] == row["high"] == 0.0
        table = found.table().set_index(["query", "gallery"]).loc[row["query"], row["gallery"]]
        assert table["recall_at_1"] == pytest.approx(row["feature_recall_at_1"])
    # Sound has another dimension: there is no cosine to speak of.
    assert {"query": "image", "gallery": "sound"} in found.coverage["incomparable"]
    assert set(found.scores["query"]) == {"image", "text"}
    assert below_features(found.coverage["features"]) is None


def test_untrained_heads_are_found_to_be_below(shared_store, tmp_path):
    found = evaluate(raw(shared_store, tmp_path / "r", init="random", dim=2), device="cpu")
    sentence = below_features(found.coverage["features"])
    assert sentence is not None
    assert "image->text by" in sentence
    assert "--method raw" in sentence


def test_the_reference_is_the_cosine_written_out(shared_store, tmp_path):
    run = raw(shared_store, tmp_path / "r")
    from calmrl_lab.data.table import load_table
    from calmrl_lab.store import FeatureStore

    store = FeatureStore.open(shared_store)
    test = load_table(store, ["image", "text"]).select(np.flatnonzero(np.asarray(store.split) == "test"))
    rows = feature_rows(test, [("image", "text")])
    assert isinstance(rows, pd.DataFrame)
    cosine = torch.nn.functional.cosine_similarity(test.rows[0].double()[:, None], test.rows[1].double()[None], dim=2)
    expected = (cosine > cosine.diagonal()[:, None] + 1e-9).sum(dim=1)
    assert rows["greater"].tolist() == expected.tolist()
    assert beside_features(rows, None) == []
    assert run.finished()


def test_an_asked_direction_that_is_not_compared_is_refused(shared_store, tmp_path):
    from calmrl_lab.errors import CalmrlError

    run = raw(shared_store, tmp_path / "r")
    with pytest.raises(CalmrlError, match="does not compare"):
        evaluate(run, directions=[("image", "sound")], device="cpu")


@pytest.mark.parametrize("method", ["cca", "shared-space"])
def test_similarities_of_features_are_methods_of_their_own(shared_store, tmp_path, method):
    found = evaluate(raw(shared_store, tmp_path / "r", method, scenario="pairs:0.5"), device="cpu")
    directions = set(zip(found.scores["query"], found.scores["gallery"], strict=True))
    assert len(directions) == (6 if method == "cca" else 2)
    assert float(found.table()["recall_at_1"].mean()) > 10 * float(found.table()["chance_recall_at_1"].mean())


def test_what_is_recommended_is_not_below_the_features(shared_store, tmp_path):
    run = raw(shared_store, tmp_path / "r", "recommended", scenario="pairs:0.5", epochs=2)
    found = evaluate(run, device="cpu")
    assert below_features(found.coverage["features"]) is None
    assert len(found.table()) == 6
    inside, outside = run.summary["similarity"]["weights"]
    assert inside["pairs"] == ["image-text"]
    assert set(outside["pairs"]) == {"image-sound", "text-sound"}
    assert sum(inside["shares"].values()) == pytest.approx(1.0)
    # The other ways of comparing are still there.
    assert len(evaluate(run, device="cpu", similarity="likelihood-ratio").table()) == 6
