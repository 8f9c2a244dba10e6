"""Evaluation of a run: what is ranked, what is imputed, what is refused."""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from calmrl_lab.data.table import load_table
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.classification import classify_run
from calmrl_lab.evaluation.evaluate import evaluate
from calmrl_lab.evaluation.missing_curves import run_curves
from calmrl_lab.runs.run import Run
from calmrl_lab.search.index_folder import build_gallery
from calmrl_lab.store import FeatureStore
from calmrl_lab.training.train import train_heads

QUICK = {"epochs": 3, "dim": 16, "batch_size": 64, "first_iterations": 5, "refresh_iterations": 2}
FOUR = ["vision", "audio", "caption", "subtitle"]


@pytest.fixture(scope="module")
def run(small_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return train_heads(
        small_store,
        "calmrl",
        scenario="pairs:0.25",
        run=folder / "r",
        modalities=FOUR,
        impute_options={"latent_dim": 4},
        **QUICK,
    )


@pytest.fixture(scope="module")
def evaluation(run):
    return evaluate(run, device="cpu")


def test_every_ordered_pair_of_modalities_is_a_direction(evaluation):
    table = evaluation.table()
    assert len(table) == 12
    assert (table["queries"] == 75).all()
    assert table["chance_recall_at_1"].to_numpy() == pytest.approx(100 / 75)


def test_ranks_equal_a_plain_sort(run, evaluation, small_store):
    table = load_table(FeatureStore.open(small_store), FOUR)
    test = table.select(np.flatnonzero(FeatureStore.open(small_store).split == "test"))
    model = run.model()
    with torch.no_grad():
        caption, vision = (model.project(name, test.rows[FOUR.index(name)]).double() for name in ("caption", "vision"))
    scores = (caption @ vision.T).numpy()
    order = np.argsort(-scores, axis=1)
    place = np.argmax(order == np.arange(len(test))[:, None], axis=1)
    part = evaluation.scores.query("query == 'caption' and gallery == 'vision'").set_index("item").loc[test.ids]
    assert part["greater"].tolist() == place.tolist()
    row = evaluation.table().set_index(["query", "gallery"]).loc["caption", "vision"]
    assert row["recall_at_5"] == pytest.approx(100 * (place < 5).mean())
    assert row["low_5"] <= row["recall_at_5"] <= row["high_5"]
    assert (row["median_rank"], row["mean_rank"]) == (np.median(place + 1), pytest.approx((place + 1).mean()))
    assert (row["mrr"], row["ndcg"]) == pytest.approx(((1 / (place + 1)).mean(), (1 / np.log2(place + 2)).mean()))


def test_a_direction_counts_only_items_that_have_both(run, small_store, tmp_path):
    keywords = train_heads(small_store, method="clip", run=tmp_path / "k", modalities=["caption", "keywords"], **QUICK)
    table = evaluate(keywords).table().set_index(["query", "gallery"])
    store = FeatureStore.open(small_store)
    with_keywords = int((store.mask[:, store.modalities.index("keywords")] & (store.split == "test")).sum())
    assert 0 < with_keywords < 75
    assert table.loc[("caption", "keywords"), "queries"] == with_keywords
    assert table.loc[("keywords", "caption"), "queries"] == with_keywords
    assert table.loc[("keywords", "caption"), "chance_recall_at_1"] == pytest.approx(100 / 75)
    assert table.loc[("caption", "keywords"), "without_positive"] == 75 - with_keywords
    assert table.loc[("keywords", "caption"), "without_positive"] == 0


@pytest.fixture(scope="module")
def gappy(tmp_path_factory):
    """A run on a store of two data sets: one shows a and b, the other b and c; of one item everything failed."""
    from calmrl_lab.store import ModalitySpec, write_store

    n, names = 40, ("a", "b", "c")
    rng = np.random.default_rng(0)
    mask = np.zeros((n, 3), dtype=bool)
    mask[::2, :2], mask[1::2, 1:] = True, True
    split = np.array(["train", "train", "validation", "validation", "test", "test", "test", "test"] * 5)
    mask[np.flatnonzero(split == "test")[-1]] = False
    path = tmp_path_factory.mktemp("stores") / "gappy.zarr"
    write_store(
        path, dataset="gappy", modalities=[ModalitySpec(name, "given", "0" * 16, 6, "float16") for name in names],
        ids=[f"i{j}" for j in range(n)], split=split, group=[f"g{j}" for j in range(n)], labels={},
        features={m: rng.normal(size=(int(mask[:, j].sum()), 6)) for j, m in enumerate(names)},
        offsets={m: np.concatenate([[0], np.cumsum(mask[:, j])]) for j, m in enumerate(names)},
        reason=np.where(mask, 0, 2).astype(np.uint8), licence="none", attribution="none", provenance={},
    )  # fmt: skip
    return train_heads(path, method="clip", run=tmp_path_factory.mktemp("runs") / "gappy", **QUICK)


class TestNaturalGaps:
    def test_what_cannot_be_asked_is_counted_and_told(self, gappy):
        found = evaluate(gappy)
        assert set(zip(found.scores["query"], found.scores["gallery"], strict=True)) == {
            ("a", "b"),
            ("b", "a"),
            ("b", "c"),
            ("c", "b"),
        }
        assert found.coverage["unserved"] == [{"query": "a", "gallery": "c"}, {"query": "c", "gallery": "a"}]
        assert found.coverage["empty_items"] == 1
        table = found.table().set_index(["query", "gallery"])
        assert table.loc[("b", "a"), "queries"] == 10
        assert table.loc[("b", "a"), "without_positive"] == 9
        assert gappy.evaluation == found.coverage

    def test_a_direction_that_was_asked_for_is_refused(self, gappy):
        with pytest.raises(CalmrlError, match="a->c: no item of the split has both"):
            evaluate(gappy, [("a", "c")])

    def test_the_command_says_it(self, gappy, cli):
        code, told, _ = cli("evaluate", "--run", gappy.path)
        assert code == 0
        assert "a->c cannot be asked" in told
        assert "1 of 20 items show no modality at all" in told
        assert re.search(r"left out: \d+ queries whose item lacks the modality", told)


def test_imputation_is_scored_where_the_truth_is_known(evaluation, run):
    frame = evaluation.imputation
    assert set(frame["imputer"]) == {"ppca", "mean", "random"}
    assert set(frame["split"]) == {"train", "test"}
    assert np.isfinite(frame["squared_error"]).all()
    means = frame.query("split == 'test'").groupby("imputer")["squared_error"].mean()
    assert means["mean"] < means["random"]
    for row in frame.itertuples():
        assert row.modality not in row.pattern.split("+")
    # Every test item under each of the six pairs lacks two modalities.
    assert len(frame.query("split == 'test' and imputer == 'ppca'")) == 75 * 6 * 2


def test_anchor_shifts_keep_their_proven_bounds(evaluation):
    frame = evaluation.anchors
    assert len(frame) == 75 * 6
    assert (frame["lower"] <= frame["shift_observed"] + 1e-6).all()
    assert (frame["shift_observed"] <= frame["upper"] + 1e-6).all()


def test_what_was_scored_and_how_is_on_record(evaluation, run, small_store):
    found = json.loads((run.path / "evaluation.json").read_text())
    assert found["similarity"] == "cosine"
    assert found["store"] == {"dataset": "openmoji", "digest": FeatureStore.open(small_store).digest}


def test_a_direction_that_is_asked_twice_counts_once(run, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    assert evaluate(copy, [("caption", "vision")] * 2).table()["queries"].tolist() == [75]


class Killed(BaseException):
    """A process that ends in the middle."""


def test_an_evaluation_that_is_killed_leaves_the_scores_of_the_one_before(run, evaluation, tmp_path, monkeypatch):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))

    def killed(*_):
        raise Killed

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(Killed):
        evaluate(copy, split="validation")
    assert copy.evaluation == run.evaluation
    assert copy.read_frame("scores.parquet").equals(run.read_frame("scores.parquet"))


def test_nothing_of_an_earlier_evaluation_stays(evaluation, run, tmp_path, small_store):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    assert (copy.path / "anchors.parquet").is_file()
    evaluate(copy, [("caption", "vision")], store=small_store)
    assert not (copy.path / "anchors.parquet").exists()
    assert not (copy.path / "imputation.parquet").exists()


@pytest.mark.parametrize("ask", [evaluate, run_curves, classify_run, lambda run: build_gallery(run, run.path / "index")])
def test_a_store_that_has_changed_since_training_is_refused(run, tmp_path, ask):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    summary = copy.summary
    copy.amend_summary(store={**summary["store"], "digest": "another"})
    with pytest.raises(CalmrlError, match="has changed since run"):
        ask(copy)


def test_the_files_hold_what_was_returned(evaluation, run):
    pd.testing.assert_frame_equal(run.read_frame("scores.parquet"), evaluation.scores)
    pd.testing.assert_frame_equal(run.read_frame("imputation.parquet"), evaluation.imputation)


@pytest.mark.parametrize(
    ("directions", "said"),
    [
        ([("caption", "smell")], "no modality 'smell'"),
        ([("caption", "caption")], "with itself"),
        (["caption:vision"], "'caption:vision' is no pair of modalities"),
        ([("caption",)], "is no pair of modalities"),
    ],
)
def test_a_direction_that_makes_no_sense(run, directions, said):
    with pytest.raises(CalmrlError, match=said):
        evaluate(run, directions)


def test_an_unknown_split(run):
    with pytest.raises(CalmrlError, match="no items in split 'dev'"):
        evaluate(run, split="dev")


def test_an_unfinished_run(run, tmp_path):
    with Run.create(tmp_path / "u", run.config) as unfinished:
        pass
    with pytest.raises(CalmrlError, match="has not finished"):
        evaluate(unfinished)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(CalmrlError, match="is not a run"):
        evaluate(tmp_path)
    with pytest.raises(CalmrlError, match="a run is expected, or the path of its folder; got a ndarray"):
        evaluate(np.eye(3))
