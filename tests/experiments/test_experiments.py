"""Experiments: skipped when finished, failures kept apart, settings chosen on validation, numbers independent of the number of jobs."""

import json
from pathlib import Path

import pytest
import yaml

from calmrl_lab.errors import CalmrlError
from calmrl_lab.experiments.loading import read_experiment
from calmrl_lab.experiments.plan import in_words, plan
from calmrl_lab.experiments.runner import run_experiment

COMMON = {"modalities": ["vision", "caption", "subtitle"], "scenario": "pairs:0.25", "dim": 16, "epochs": 2, "batch_size": 64}


def experiment(tmp_path, store, **changes):
    values = {
        "title": "small",
        "store": str(store),
        "seeds": [0, 1],
        "common": COMMON,
        "methods": [
            {"name": "clip", "method": "clip"},
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
        {"name": "clip", "method": "clip"},
    ]
    record = run_experiment(experiment(tmp_path, small_store, methods=methods, seeds=[0]), tmp_path / "a", jobs=1)
    (failure,) = record["failed"]
    assert failure["run"] == "bad-s0"
    assert "latent_dim" in failure["error"]
    assert (tmp_path / "a" / "clip-s0" / "scores.parquet").exists()
    assert json.loads((tmp_path / "a" / "bad-s0" / "error.json").read_text())["label"] == "bad"


@pytest.mark.slow
def test_a_grid_is_chosen_on_validation(tmp_path, small_store):
    methods = [{"name": "clip", "method": "clip", "grid": {"learning_rate": [1e-7, 1e-3]}}]
    asked = experiment(tmp_path, small_store, methods=methods, seeds=[0], tuning_seeds=[5])
    record = run_experiment(asked, tmp_path / "a", jobs=1)
    (method,) = record["methods"]
    scores = {row["settings"]["learning_rate"]: row["validation_mrr"] for row in method["tuning"]}
    assert method["settings"]["learning_rate"] == max(scores, key=scores.get)
    assert {row.what for row in plan(asked, tmp_path / "a")} == {"finished"}
    assert not list((tmp_path / "a" / "tuning").glob("*/scores.parquet"))


def test_the_plan_names_every_run(tmp_path, small_store):
    rows = plan(experiment(tmp_path, small_store), tmp_path / "a")
    assert [row.what for row in rows] == ["train and evaluate"] * 4
    assert all(row.seconds > 0 and not row.measured for row in rows)


def test_a_guess_knows_what_makes_a_run_dear(tmp_path, small_store):
    methods = [{"name": name, "method": name} for name in ("clip", "calmrl", "recommended")]
    members = {"members": [{"method": "clip"}, {"method": "calmrl"}]}
    methods.append({"name": "both", "method": "clip", "settings": members})
    rows = plan(experiment(tmp_path, small_store, methods=methods, seeds=[0]), tmp_path / "a")
    clip, calmrl, recommended, both = rows
    assert clip.seconds < calmrl.seconds < recommended.seconds
    assert 2 * clip.bytes < recommended.bytes
    assert both.seconds > clip.seconds + calmrl.seconds


@pytest.mark.slow
def test_short_runs_say_what_a_run_will_cost(tmp_path, small_store):
    asked = experiment(tmp_path, small_store, seeds=[0])
    rows = plan(asked, tmp_path / "a", measure=True)
    assert all(row.measured and row.seconds > 0 for row in rows)
    run_experiment(asked, tmp_path / "a", jobs=1)
    for row in rows:
        weight = sum(file.stat().st_size for file in Path(row.run).rglob("*") if file.is_file())
        assert 0.5 < row.bytes / weight < 2
        assert json.loads((Path(row.run) / "summary.json").read_text())["core_seconds"] > 0
    again = plan(experiment(tmp_path, small_store, seeds=[0, 1]), tmp_path / "a")
    assert [row.measured for row in again] == [True] * 4
    assert in_words(again, 1).startswith("2 of 4 runs to make: about")


def test_the_plan_of_a_grid_says_what_each_candidate_changes(tmp_path, small_store):
    grid = {"learning_rate": [0.1, 0.2], "objective_options.temperature": [0.3]}
    methods = [{"name": "clip", "method": "clip", "grid": grid}]
    rows = plan(experiment(tmp_path, small_store, methods=methods), tmp_path / "a")
    assert rows[0].what == "choose: learning_rate=0.1, objective_options.temperature=0.3"
    assert [row.what for row in rows[-2:]] == ["train with the chosen settings, and evaluate"] * 2


DATA = {
    "first": {"stand_in": "Only a stand-in.", "common": {"scenario": "full"}},
    "second": {
        "seeds": [4], "directions": ["caption:vision"], "leave_out": ["clip"], "notes": "More.",
        "methods": {"calmrl": {"impute": "random"}},
    },
}  # fmt: skip


@pytest.mark.slow
def test_data_of_a_file_are_laid_over_it(tmp_path, small_store):
    first = experiment(tmp_path, small_store, data=DATA, notes="Some.")
    assert (first.data, first.stand_in, first.common["scenario"]) == ("first", "Only a stand-in.", "full")
    second = read_experiment(tmp_path / "small.yaml", data="second")
    assert [method.name for method in second.methods] == ["calmrl"]
    assert second.methods[0].settings == {"impute": "random"}
    assert (second.seeds, second.directions, second.notes) == ((4,), ("caption:vision",), "Some.\nMore.")
    assert second.common == {**COMMON}
    record = run_experiment(second, tmp_path / "a", jobs=1)
    assert (record["finished"], record["data"]) == (True, "second")
    import pandas as pd

    scores = pd.read_parquet(tmp_path / "a" / "calmrl-s4" / "scores.parquet")
    assert scores[["query", "gallery"]].drop_duplicates().to_numpy().tolist() == [["caption", "vision"]]


def test_data_that_a_file_does_not_have_are_refused(tmp_path, small_store, cli):
    experiment(tmp_path, small_store, data=DATA)
    code, _, err = cli("experiment", tmp_path / "small.yaml", "--data", "secnd")
    assert code == 2
    assert "has no data 'secnd'; did you mean 'second'?" in err
    experiment(tmp_path, small_store)
    code, _, err = cli("experiment", tmp_path / "small.yaml", "--data", "first")
    assert code == 2
    assert "knows only one data set" in err


@pytest.mark.slow
def test_the_command_shows_its_plan_and_the_stand_in_shows_in_the_report(tmp_path, small_store, cli):
    experiment(tmp_path, small_store, data=DATA)
    code, out, err = cli("experiment", tmp_path / "small.yaml", "--runs", tmp_path / "runs", "--dry-run")
    assert code == 0, err
    assert "4 of 4 runs to make: about" in out
    assert "Only a stand-in." in err
    assert not (tmp_path / "runs").exists()
    quick = ("--set", "seeds=[0]", "--set", "common.epochs=1", "--jobs", "1")
    assert cli("experiment", tmp_path / "small.yaml", "--runs", tmp_path / "runs", *quick)[0] == 0
    code, out, _ = cli("experiment", tmp_path / "small.yaml", "--runs", tmp_path / "runs", *quick, "--dry-run")
    assert out.count("finished") == 2
    assert "0 of 2 runs to make" in out
    assert cli("report", "--runs", tmp_path / "runs" / "small-first", "--out", tmp_path / "report")[0] == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<h1>small (stand-in: first)</h1>" in page
    for table in (tmp_path / "report" / "tables").glob("*.[mt]*"):
        # What others published was measured on the data that is stood in for.
        assert ("Only a stand-in." in table.read_text()) != table.name.startswith("published_"), table.name
    for figure in (tmp_path / "report" / "figures").glob("*.svg"):
        assert "stand-in data: openmoji" in figure.read_text(), figure.name
    assert page.count("Only a stand-in.") > 2


@pytest.mark.slow
def test_a_killed_experiment_can_be_reported_and_goes_on_to_the_same_tables(tmp_path, small_store):
    """SIGKILL to everything in the middle, as a machine that goes down does it."""
    import os
    import signal
    import subprocess
    import sys
    import time

    experiment(tmp_path, small_store, seeds=[0, 1, 2])
    words = [sys.executable, "-m", "calmrl_lab"]

    def start(runs):
        command = [*words, "experiment", str(tmp_path / "small.yaml"), "--runs", str(runs), "--jobs", "1"]
        return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def table(runs):
        out = runs / "report"
        subprocess.run([*words, "report", "--runs", str(runs / "small"), "--out", str(out)], check=True, capture_output=True)
        return (out / "tables" / "recall.csv").read_text()

    undisturbed = start(tmp_path / "whole")
    killed = start(tmp_path / "killed")
    for _ in range(600):
        if list((tmp_path / "killed").glob("small/*/evaluation.json")):
            break
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert undisturbed.wait() == 0
    record = json.loads((tmp_path / "killed" / "small" / "experiment.json").read_text())
    assert record["finished"] is False
    assert len(list((tmp_path / "killed").glob("small/*/scores.parquet"))) < 6
    table(tmp_path / "killed")
    assert "has not finished" in (tmp_path / "killed" / "report" / "index.html").read_text()
    assert start(tmp_path / "killed").wait() == 0
    assert table(tmp_path / "killed") == table(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methodz": []}, r"methodz: unknown key; did you mean 'methods'\?"),
        ({"methods": []}, "methods: .*at least 1"),
        ({"methods": [{"name": "a/b"}]}, "methods.0.name"),
        ({"methods": [{"name": "a"}, {"name": "a"}]}, "two methods are called 'a'"),
        ({"methods": [{"name": "a", "role": "hero"}]}, "methods.0.role"),
        (
            {
                "methods": [{"name": "t", "settings": {"objective": "triangle", "impute": "none"}}],
                "common": {"modalities": ["vision", "caption"]},
            },
            "method 't': .*triangle",
        ),
        (
            {"methods": [{"name": "n", "method": "calmrl", "settings": {"impute": "none"}}]},
            "method 'n': objective 'calmrl' needs the gaps filled",
        ),
        (
            {"methods": [{"name": "o", "settings": {"objective": "clip", "similarity": "likelihood-ratio"}}]},
            "method 'o': similarity 'likelihood-ratio'",
        ),
        ({"common": {"scenario": "pears:0.25"}}, "method 'clip': unknown scenario"),
        ({"directions": ["caption-vision"]}, "direction 'caption-vision' is not of the form"),
        ({"common": {"epoch": 3}}, r"method 'clip': epoch: unknown key; did you mean 'epochs'\?"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_before_anything_runs(tmp_path, small_store, changes, said):
    with pytest.raises(CalmrlError, match=said):
        experiment(tmp_path, small_store, **changes)


@pytest.mark.slow
def test_workers_end_with_an_experiment_that_is_killed(tmp_path, small_store):
    """Left behind, they would write the runs that a resumed experiment makes again."""
    import signal
    import subprocess
    import sys
    import time
    from pathlib import Path

    experiment(tmp_path, small_store, common={**COMMON, "epochs": 100_000, "patience": 100_000})
    words = [
        sys.executable,
        "-m",
        "calmrl_lab",
        "experiment",
        str(tmp_path / "small.yaml"),
        "--runs",
        str(tmp_path / "runs"),
        "--jobs",
        "2",
    ]
    started = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def until(what):
        for _ in range(600):
            if what():
                return True
            time.sleep(0.1)
        return False

    assert until(lambda: len(list(tmp_path.glob("runs/small/*/metrics.jsonl"))) == 2)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    assert len(children) >= 2
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
