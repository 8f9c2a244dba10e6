"""The real command line: the whole path, help that is quick, errors of one sentence."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from calmrl_lab._version import __version__


def test_the_whole_path(cli, small_store, tmp_path):
    run = tmp_path / "runs" / "first"
    settings = [
        "--set",
        "dim=16",
        "--set",
        "impute_options.latent_dim=4",
        "--epochs",
        2,
        "--modalities",
        "vision,caption,subtitle",
    ]
    code, out, _ = cli(
        "train-heads", "--store", small_store, "--method", "calmrl", "--scenario", "pairs", "--run", run, *settings
    )
    assert code == 0
    assert "calmrl (" in out
    code, out, _ = cli("evaluate", "--run", run, "--json")
    assert code == 0
    rows = json.loads(out)
    assert {(row["query"], row["gallery"]) for row in rows} >= {("caption", "vision"), ("vision", "caption")}
    code, out, _ = cli("report", "--runs", tmp_path / "runs", "--out", tmp_path / "report")
    assert code == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<svg" in page
    header = (tmp_path / "report" / "tables" / "recall.csv").read_text().splitlines()[0]
    assert header == "method,query,gallery,recall_at_1,low,high,recall_at_5,recall_at_10,median_rank,seeds,queries"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["extract", "--dataset", "openmojy"], "unknown dataset 'openmojy'; did you mean 'openmoji'?"),
        (["train-heads"], "no feature store was named"),
        (["train-heads", "--store", "nowhere.zarr"], "nowhere.zarr"),
        (["train-heads", "--store", "STORE", "--scenario", "drop:smell"], "unknown modality 'smell'"),
        (["train-heads", "--store", "STORE", "--set", "epoch=3"], "did you mean 'epochs'?"),
        (
            [
                "train-heads",
                "--store",
                "STORE",
                "--modalities",
                "vision,audio,caption",
                "--scenario",
                "drop:audio",
                "--impute",
                "ppca",
            ],
            "never observed",
        ),
        (
            ["train-heads", "--store", "STORE", "--modalities", "vision,audio", "--scenario", "drop:audio"],
            "shows two of the modalities vision, audio under scenario 'drop:audio', so there is nothing to align them by",
        ),
        (["evaluate", "--run", "nowhere"], "is not a run"),
        (["evaluate", "--run", "nowhere", "--direction", "caption"], "query:gallery"),
        (["experiment", "nowhere.yaml"], "there is no file"),
        (["report", "--runs", "nowhere"], "nowhere"),
        (["bench", "nonsense"], "unknown benchmark"),
    ],
)
def test_a_request_that_makes_no_sense_is_one_sentence_and_code_2(cli, small_store, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*(str(small_store) if word == "STORE" else word for word in words))
    assert code == 2
    assert said in " ".join(err.split())
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(small_store):
    command = [sys.executable, "-m", "calmrl_lab.cli", "evaluate", "--run", "nowhere", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_every_command_has_help_with_an_example():
    from calmrl_lab.cli import app

    runner = CliRunner()
    top = runner.invoke(app, ["--help"])
    assert top.exit_code == 0
    for command in ("extract", "store", "train-heads", "evaluate", "experiment", "report", "list", "doctor", "bench"):
        shown = runner.invoke(app, [command, "--help"])
        assert shown.exit_code == 0, command
        if command != "store":
            assert "Example: calmrl-lab" in shown.output, command


def test_help_behind_a_benchmark_shows_the_options_of_that_benchmark():
    from calmrl_lab.cli import app

    shown = CliRunner().invoke(app, ["bench", "rivals", "--help"])
    assert shown.exit_code == 0
    assert "--imputers" in shown.output


def test_help_does_not_import_torch():
    code = "import sys; sys.argv=['calmrl-lab','--help']\ntry:\n    from calmrl_lab.cli import main; main()\nexcept SystemExit: pass\n"
    code += "sys.exit(bool({'torch', 'pandas', 'zarr', 'matplotlib', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_version(cli):
    assert cli("--version")[1].strip() == f"calmrl-lab {__version__}"


@pytest.mark.parametrize("kind", ["objectives", "imputers", "datasets", "encoders", "scorers"])
def test_list(cli, kind):
    code, out, _ = cli("list", kind, "--json")
    assert code == 0
    described = json.loads(out)
    assert described
    assert all(described.values()), "every plug-in says in a line what it is"


def test_doctor(cli, small_store, tmp_path):
    code, out, _ = cli("doctor", small_store, "--json")
    assert code == 0
    findings = json.loads(out)
    assert any("300 items" in finding["what"] for finding in findings)
    code, out, _ = cli("doctor", tmp_path / "nowhere.zarr")
    assert code == 1
