"""Whatever state a folder of runs is in, it is described and never crashes the report."""

import pandas as pd
import pytest
import yaml
from runs.resealing import reseal
from synthetic_runs import RECIPES, write_experiment, write_run

from calmrl_lab.errors import CalmrlError
from calmrl_lab.reporting.results.collect import gather
from calmrl_lab.runs.run import Run


def kinds(gathered):
    return {problem.run: problem.kind for problem in gathered.problems}


def test_methods_keep_the_order_of_the_experiment_file(experiment):
    found = gather(experiment)
    assert [method.name for method in found.methods] == [recipe.name for recipe in RECIPES]
    assert [method.role for method in found.methods] == [recipe.role for recipe in RECIPES]
    assert found.methods[0].seeds == (0, 1)
    assert (found.methods[3].objective, found.methods[3].imputer, found.methods[3].scenario) == ("calmrl", "ppca", "pairs:0.25")
    assert found.problems == ()


@pytest.mark.slow
def test_every_bad_state_is_one_sentence(tmp_path):
    folder = write_experiment(tmp_path / "x", RECIPES[2:4], seeds=tuple(range(7)), items=10)
    (folder / "pmrl-s0" / "summary.json").unlink()
    (folder / "pmrl-s1" / "scores.parquet").unlink()
    (folder / "pmrl-s2" / "scores.parquet").write_bytes(b"not parquet")
    config = yaml.safe_load((folder / "pmrl-s3" / "config.yaml").read_text())
    (folder / "pmrl-s3" / "config.yaml").write_text(yaml.safe_dump({**config, "format": 99}))
    Run(folder / "pmrl-s4").write_record(Run.ERROR, {"run": "pmrl-s4", "error": "the loss is not finite", "traceback": "Tb"})
    pd.read_parquet(folder / "pmrl-s5" / "scores.parquet").drop(columns="equal").to_parquet(
        folder / "pmrl-s5" / "scores.parquet"
    )
    reseal(folder / "pmrl-s5")
    found = gather(folder)
    assert kinds(found) == {
        "pmrl-s0": "unfinished", "pmrl-s1": "not evaluated", "pmrl-s2": "damaged", "pmrl-s3": "other version", "pmrl-s4": "failed",
        "pmrl-s5": "damaged",
    }  # fmt: skip
    assert all(problem.sentence for problem in found.problems)
    assert found.methods[0].seeds == (6,)
    assert next(p for p in found.problems if p.run == "pmrl-s4").detail == "Tb"


def test_failures_that_only_the_experiment_file_knows_are_shown(tmp_path):
    failed = [{"run": "gram-s0", "label": "GRAM", "error": "the worker died"}, {"run": "pmrl-s0", "error": "an old failure"}]
    folder = write_experiment(tmp_path / "x", RECIPES[2:3], seeds=(0,), items=10, failed=failed)
    assert kinds(gather(folder)) == {"gram-s0": "failed"}


def test_a_method_without_a_run_is_absent_not_forgotten(tmp_path):
    folder = write_experiment(tmp_path / "x", RECIPES[2:4], seeds=(0,), items=10)
    (folder / "pmrl-s0" / "summary.json").unlink()
    found = gather(folder)
    assert [method.name for method in found.absent] == ["pmrl"]


def test_single_runs_without_an_experiment_file(tmp_path):
    for recipe in RECIPES[:5]:
        for seed in (0, 1):
            write_run(tmp_path / f"{recipe.name}-s{seed}", recipe, seed, items=10)
    found = gather(tmp_path)
    roles = {method.name: method.role for method in found.methods}
    assert roles["oracle"] == "oracle"
    assert (roles["pmrl"], roles["calmrl-ppca"], roles["calmrl-mean"]) == ("baseline", "calibrated", "control")
    assert found.store["digest"] == "5f1d0c"
    assert not found.complete


def test_one_run_is_reported_by_its_own_name(tmp_path, monkeypatch):
    write_run(tmp_path / "mine", RECIPES[2], 0, items=10)
    write_run(tmp_path / "other", RECIPES[3], 0, items=10)
    found = gather(tmp_path / "mine")
    assert [[run.name for run in method.runs] for method in found.methods] == [["mine"]]
    monkeypatch.chdir(tmp_path / "mine")
    assert gather(".").title == found.title == "Runs in mine"


def test_runs_with_one_label_are_told_apart(tmp_path):
    recipe = RECIPES[2]
    for name in ("a-s0", "b-s0"):
        write_run(tmp_path / name, recipe, 0, items=10)
    assert [m.label for m in gather(tmp_path).methods] == ["PMRL, observed only (a)", "PMRL, observed only (b)"]


def test_the_only_experiment_below_a_folder_is_taken_and_several_are_asked_about(tmp_path):
    write_experiment(tmp_path / "runs" / "demo", RECIPES[2:3], seeds=(0,), items=10)
    assert gather(tmp_path / "runs").folder.name == "demo"
    write_experiment(tmp_path / "runs" / "table1", RECIPES[2:3], seeds=(0,), items=10)
    with pytest.raises(CalmrlError, match="holds 2 experiments: demo, table1"):
        gather(tmp_path / "runs")


def test_nothing_to_report(tmp_path):
    with pytest.raises(CalmrlError, match="there is no folder"):
        gather(tmp_path / "absent")
    with pytest.raises(CalmrlError, match="holds no runs"):
        gather(tmp_path)


def test_a_run_on_another_version_of_the_store_is_marked(tmp_path):
    folder = write_experiment(tmp_path / "x", RECIPES[2:3], seeds=(0, 1), items=10)
    reseal(folder / "pmrl-s1", store={"digest": "other"})
    assert kinds(gather(folder)) == {"pmrl-s1": "other store"}


def test_a_log_cut_off_by_a_kill_is_read_up_to_there(tmp_path):
    folder = write_experiment(tmp_path / "x", RECIPES[2:3], seeds=(0,), items=10)
    with open(folder / "pmrl-s0" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 9, "validat')
    reseal(folder / "pmrl-s0")
    assert len(gather(folder).methods[0].runs[0].metrics) == 8


def test_a_run_of_an_earlier_form_of_the_experiment_is_not_in_its_tables(tmp_path):
    """A file was edited, and the experiment killed before every run was made again."""
    folder = write_experiment(tmp_path / "x", RECIPES[2:3], seeds=(0, 1, 2), items=10)
    path = folder / "pmrl-s1" / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "epochs": 5, "objective_options": {"a": 1}}))
    reseal(folder / "pmrl-s1")
    run = Run(folder / "pmrl-s2")
    run.write_record(run.EVALUATION, {**run.read_record(run.EVALUATION), "split": "validation"})
    found = gather(folder)
    assert kinds(found) == {"pmrl-s1": "other settings", "pmrl-s2": "other settings"}
    assert found.methods[0].seeds == (0,)
    first, second = (problem.sentence for problem in found.problems)
    assert 'objective_options {"a": 1}, not {}; epochs 5, not 40' in first
    assert "split validation, not test" in second


def test_runs_that_differ_in_more_than_the_seed_are_no_seeds_of_one_method(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"pmrl-s{seed}", RECIPES[2], seed, items=10)
    path = tmp_path / "pmrl-s1" / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "learning_rate": 0.1}))
    reseal(tmp_path / "pmrl-s1")
    found = gather(tmp_path)
    assert kinds(found) == {"pmrl-s1": "other settings"}
    assert "run 'pmrl-s1' is no further seed of 'pmrl-s0': learning_rate 0.1, not 0.001" in found.problems[0].sentence
    assert found.methods[0].seeds == (0,)
