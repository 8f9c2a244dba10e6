"""Experiments: skipped when finished, failures kept apart, settings chosen on validation, numbers independent of the number of jobs."""

import json

import pytest
import yaml

from calmrl_lab.errors import CalmrlError
from calmrl_lab.experiments import plan, read_experiment, run_experiment

COMMON = {"modalities": ["vision", "caption", "subtitle"], "scenario": "pairs:0.25", "dim": 16, "epochs": 2, "batch_size": 64}


def experiment(tmp_path, store, **changes):
    values = {
        "title": "small",
        "store": str(store),
        "seeds": [0, 1],
        "common": COMMON,
        "methods": [
            {"name": "clip", "settings": {"objective": "clip", "impute": "none"}},
            {"name": "calmrl", "role": "calibrated", "settings": {"impute": "mean"}},
        ],
    }
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**values, **changes}))
    return read_experiment(file)


def stamps(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/scores.parquet")}


@pytest.mark.slow
def test_an_experiment_runs_skips_and_repeats(tmp_path, small_store):
    asked = experiment(tmp_path, small_store)
    record = run_experiment(asked, tmp_path / "a", jobs=2)
    assert record["failed"] == []
    assert [m["runs"] for m in record["methods"]] == [["clip-s0", "clip-s1"], ["calmrl-s0", "calmrl-s1"]]
    assert record["store"]["items"] == 300
    before = stamps(tmp_path / "a")
    assert len(before) == 4
    run_experiment(asked, tmp_path / "a", jobs=1)
    assert stamps(tmp_path / "a") == before

    run_experiment(asked, tmp_path / "b", jobs=1)
    for name in before:
        assert (tmp_path / "a" / name / "scores.parquet").read_bytes() == (
            tmp_path / "b" / name / "scores.parquet"
        ).read_bytes()


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(tmp_path, small_store):
    methods = [
        {"name": "bad", "settings": {"impute": "ppca", "impute_options": {"latent_dim": 9999}}},
        {"name": "clip", "settings": {"objective": "clip", "impute": "none"}},
    ]
    record = run_experiment(experiment(tmp_path, small_store, methods=methods, seeds=[0]), tmp_path / "a", jobs=1)
    (failure,) = record["failed"]
    assert failure["run"] == "bad-s0"
    assert "latent_dim" in failure["error"]
    assert (tmp_path / "a" / "clip-s0" / "scores.parquet").exists()
    assert json.loads((tmp_path / "a" / "bad-s0" / "error.json").read_text())["label"] == "bad"


@pytest.mark.slow
def test_a_grid_is_chosen_on_validation(tmp_path, small_store):
    methods = [{"name": "clip", "settings": {"objective": "clip", "impute": "none"}, "grid": {"learning_rate": [1e-7, 1e-3]}}]
    asked = experiment(tmp_path, small_store, methods=methods, seeds=[0], tuning_seeds=[5])
    record = run_experiment(asked, tmp_path / "a", jobs=1)
    (method,) = record["methods"]
    scores = {row["settings"]["learning_rate"]: row["validation_mrr"] for row in method["tuning"]}
    assert method["settings"]["learning_rate"] == max(scores, key=scores.get)
    assert not list((tmp_path / "a" / "tuning").glob("*/scores.parquet"))


def test_the_plan_names_every_run(tmp_path, small_store):
    rows = plan(experiment(tmp_path, small_store), tmp_path / "a")
    assert [row["what"] for row in rows] == ["train and evaluate"] * 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methodz": []}, r"methodz: unknown key; did you mean 'methods'\?"),
        ({"methods": []}, "methods: .*at least 1"),
        ({"methods": [{"name": "a/b"}]}, "methods.0.name"),
        ({"methods": [{"name": "a"}, {"name": "a"}]}, "two methods are called 'a'"),
        ({"methods": [{"name": "a", "role": "hero"}]}, "methods.0.role"),
        ({"common": {"epoch": 3}}, r"method 'clip': epoch: unknown key; did you mean 'epochs'\?"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_before_anything_runs(tmp_path, small_store, changes, said):
    with pytest.raises(CalmrlError, match=said):
        experiment(tmp_path, small_store, **changes)
