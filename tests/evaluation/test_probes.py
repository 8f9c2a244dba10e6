"""The commands over a finished run: tables for people, JSON for machines, sentences for mistakes."""

import json

import pytest


def test_curves(trained, cli):
    words = (
        "curves",
        "--run",
        trained.path,
        "--query",
        "caption",
        "--scenario",
        "full",
        "--scenario",
        "random:0.5",
        "--scorer",
        "centroid",
    )
    code, said, err = cli(*words)
    assert code == 0, err
    assert "best single" in said
    code, said, _ = cli(*words, "--json")
    found = json.loads(said)
    assert {row["scorer"] for row in found["curves"]} >= {"centroid", "cosine:vision"}
    assert {row["gallery_scenario"] for row in found["gain"]} == {"full", "random:0.5"}


def test_classify(trained, cli):
    code, said, err = cli("classify", "--run", trained.path, "--label", "category", "--kind", "knn", "--json")
    assert code == 0, err
    assert {row["modality"] for row in json.loads(said)} >= {"vision", "joint"}
    code, said, _ = cli("classify", "--run", trained.path, "--label", "category", "--kind", "centroid")
    assert "accuracy in percent" in said


def test_diagnose(trained, cli):
    code, said, err = cli("diagnose", "--run", trained.path)
    assert code == 0, err
    assert "pairs of modalities" in said
    code, said, _ = cli("diagnose", "--run", trained.path, "--json")
    assert len(json.loads(said)["pairs"]) == 10


def test_diagnose_an_evaluated_run(trained, cli):
    from calmrl_lab.evaluation import evaluate

    evaluate(trained, device="cpu")
    code, said, err = cli("diagnose", "--run", trained.path, "--slice", "pattern", "--slice", "shift_observed", "--json")
    assert code == 0, err
    found = json.loads(said)
    assert {row["imputer"] for row in found["reliability"]} == {"ppca"}
    for row in found["anchors"]:
        assert row["lower"] <= row["shift_observed"] <= row["upper"]
    assert sum(row["queries"] for row in found["recall_by_pattern"]) == sum(
        row["queries"] for row in found["recall_by_shift_observed"]
    )
    assert found["spectrum"][0]["s1"] > found["spectrum"][0]["s2"]
    code, said, _ = cli("diagnose", "--run", trained.path)
    assert "Recall@1 in percent by group size" in said
    code, _, said = cli("diagnose", "--run", trained.path, "--slice", "smell")
    assert code == 2
    assert "no column 'smell'" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("curves", "--scorer", "centriod"), "did you mean 'centroid'"),
        (("curves", "--scenario", "randm:0.5"), "did you mean 'random'"),
        (("classify", "--label", "categry"), "did you mean 'category'"),
        (("diagnose", "--split", "tset"), "no items in split 'tset'"),
    ],
)
def test_mistakes_end_with_two(trained, cli, words, said):
    code, out, err = cli(words[0], "--run", trained.path, *words[1:])
    assert (code, out) == (2, "")
    assert said in err.replace("\n", " ")
