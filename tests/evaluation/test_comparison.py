"""Two methods on the same queries: pairing, seeds, correction, and what cannot be compared."""

import json

import numpy as np
import pandas as pd
import pytest

from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.comparison import compare_runs, runs_at
from calmrl_lab.evaluation.score_rows import direction_shares, hits
from calmrl_lab.runs.run import Run
from calmrl_lab.runs.run_folder import FORMAT


def rng():
    return np.random.default_rng(0)


@pytest.fixture
def written(tmp_path):
    """written(name, skill, seed) -> an evaluated run of invented ranks; queries share their difficulty over runs."""

    def write(name, skill, seed=0, items=300, digest="d", captions=1, similarity="cosine"):
        folder = tmp_path / f"{name}-s{seed}"
        folder.mkdir()
        (folder / "config.yaml").write_text(f"format: {FORMAT}\nstore: s\n")
        Run(folder).finish({"seed": seed, "store": {"digest": "training"}})
        frames = []
        for direction, (query, gallery) in enumerate((("a", "b"), ("b", "a"))):
            ease = np.random.default_rng(direction).random(items).repeat(captions)
            luck = np.random.default_rng([seed, direction, int(1000 * skill)]).normal(0, 0.05, items * captions)
            item = np.arange(items).repeat(captions)
            frames.append(
                pd.DataFrame(
                    {
                        "query": query, "gallery": gallery, "scorer": similarity, "gallery_scenario": "full", "item": [f"i{i}" for i in item],
                        "group": [f"g{i // 2}" for i in item], "pattern": "a+b", "greater": np.where(ease + luck < skill, 0, 5), "equal": 0, "best_positives": 1,
                        "candidates": items, "positives": 1,
                    }
                )
            )  # fmt: skip
        frame = pd.concat(frames, ignore_index=True)
        ranks = frame.sample(frac=1, random_state=seed) if captions == 1 else frame
        Run(folder).write_evaluation({Run.SCORES: ranks}, {"store": {"digest": digest}})
        return Run(folder)

    return write


def test_a_difference_is_that_of_the_means(written):
    a, b = written("good", 0.5), written("bad", 0.3)
    table = compare_runs([a], [b], rng())
    assert table["query"].tolist() == [*"ab", "mean"] or table["query"].tolist() == [*"ba", "mean"]
    for row in table[table["query"] != "mean"].itertuples():
        means = []
        for run in (a, b):
            part = run.read_frame("scores.parquet").query(f"query == '{row.query}'")
            means.append(100 * hits(part, 1).mean())
        assert [row.first, row.second] == pytest.approx(means)
        assert row.difference == pytest.approx(means[0] - means[1])
    assert table["clear"].all()
    assert (table["groups"] == 150).all()
    assert table["queries"].tolist() == [300, 300, 600]
    back = compare_runs([b], [a], rng())
    np.testing.assert_allclose(np.sort(back["difference"]), np.sort(-table["difference"]))


def test_seeds_are_paired_and_widen_the_interval(written):
    first = [written("good", 0.42, seed) for seed in range(3)]
    second = [written("bad", 0.40, seed) for seed in range(4)]
    table = compare_runs(first, second, rng())
    assert (table["seeds"] == 3).all()
    assert ((table["low"] <= table["difference"]) & (table["difference"] <= table["high"])).all()
    assert (table["corrected"] >= table["p"]).all()


def test_the_same_run_twice_is_no_difference(written):
    run = written("one", 0.4)
    table = compare_runs([run], [run], rng())
    assert (table["p"] == 1).all()
    assert not table["clear"].any()


def test_captions_are_paired_in_order_and_strays_are_counted(written):
    a, b = written("many", 0.5, captions=3), written("few", 0.5, items=200, captions=3)
    table = compare_runs([a], [b], rng())
    assert (table["unpaired"] == 600).all()
    assert table["queries"].max() == 1200


def test_runs_that_compare_pairs_otherwise_are_compared_and_told_apart(written, tmp_path, cli):
    a, b = written("ratio", 0.5, similarity="likelihood-ratio"), written("cosine", 0.5)
    table = compare_runs([a], [b], rng())
    assert (table["unpaired"] == 0).all()
    assert (table["first_similarity"][0], table["second_similarity"][0]) == ("likelihood-ratio", "cosine")
    _, said, _ = cli("compare", tmp_path / "ratio", tmp_path / "cosine")
    assert "ratio compares pairs by likelihood-ratio, cosine by cosine" in said
    with pytest.raises(CalmrlError, match="scored differently: cosine and sum"):
        compare_runs([written("mixed", 0.5), written("mixed", 0.5, 1, similarity="sum")], [b], rng())


def test_runs_are_found_by_method(written, tmp_path):
    for seed in (0, 1, 10, 2):
        written("pmrl", 0.4, seed)
    written("pmrl-complete", 0.4)
    assert [run.name for run in runs_at(tmp_path / "pmrl")] == ["pmrl-s0", "pmrl-s1", "pmrl-s2", "pmrl-s10"]
    assert [run.name for run in runs_at(tmp_path / "pmrl-s1")] == ["pmrl-s1"]
    with pytest.raises(CalmrlError, match="neither a run nor"):
        runs_at(tmp_path / "clip")


def test_what_cannot_be_paired_is_refused(written):
    with pytest.raises(CalmrlError, match="different stores"):
        compare_runs([written("a", 0.4)], [written("b", 0.4, digest="e")], rng())
    with pytest.raises(CalmrlError, match="share no seed"):
        compare_runs([written("c", 0.4, 0), written("c", 0.4, 1)], [written("d", 0.4, 2)], rng())


def test_the_command(written, tmp_path, cli):
    written("good", 0.5), written("bad", 0.3)
    code, said, _ = cli("compare", tmp_path / "good", tmp_path / "bad")
    assert code == 0
    assert "good minus bad" in said
    assert "one seed" in said
    code, said, _ = cli("compare", tmp_path / "good", tmp_path / "bad", "--json")
    assert json.loads(said)[-1]["query"] == "mean"
    code, _, err = cli("compare", tmp_path / "good", tmp_path / "nothing")
    assert code == 2
    assert "neither a run" in err.replace("\n", " ")


def test_the_mean_is_over_directions_and_the_pooled_difference_stands_beside_it(written):
    a, b = written("good", 0.5), written("bad", 0.3)
    for run in (a, b):
        frame = run.read_frame(Run.SCORES)
        # One direction has a tenth of the queries of the other.
        kept = frame[(frame["query"] == "a") | (frame["item"].str[1:].astype(int) % 10 == 0)]
        run.write_evaluation({Run.SCORES: kept}, {"store": {"digest": "d"}})
    table = compare_runs([a], [b], rng()).set_index("query")
    directions = table.loc[["a", "b"]]
    assert table.loc["mean", "difference"] == pytest.approx(directions["difference"].mean())
    assert table.loc["mean", "first"] == pytest.approx(directions["first"].mean())
    assert table.loc["mean", "pooled"] == pytest.approx(np.average(directions["difference"], weights=directions["queries"]))
    assert directions["pooled"].tolist() == pytest.approx(directions["difference"].tolist())


def test_shares_of_directions_have_the_mean_over_seeds_and_directions():
    generator = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "query": generator.choice(["a", "b", "c"], 200, p=[0.6, 0.3, 0.1]), "gallery": "d",
            "group": generator.integers(0, 20, 200), "seed": generator.integers(0, 3, 200),
        }
    )  # fmt: skip
    values = generator.random(200)
    shares, group, seed = direction_shares(rows, values)
    assert (group.reshape(3, -1) == np.arange(rows["group"].nunique())).all()
    assert (seed.reshape(3, -1) == np.arange(3)[:, None]).all()
    assert shares.mean() == pytest.approx(rows.assign(value=values).groupby(["seed", "query"])["value"].mean().mean())
