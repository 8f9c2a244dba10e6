"""Sweeps on Ray give what processes give; an engine or a store that is not there is refused before anything is written."""

import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml

from calmrl_lab.errors import CalmrlError
from calmrl_lab.experiments.loading import read_experiment
from calmrl_lab.experiments.make_runs import check_engine
from calmrl_lab.experiments.runner import run_experiment

COMMON = {"modalities": ["vision", "caption", "subtitle"], "scenario": "pairs:0.25", "dim": 16, "epochs": 2, "batch_size": 64}
METHODS = [
    {"name": "clip", "method": "clip"},
    {"name": "calmrl", "role": "calibrated", "settings": {"impute": "mean"}},
]


def asked(tmp_path, store, **changes):
    file = tmp_path / "small.yaml"
    values = {"title": "small", "store": str(store), "seeds": [0, 1], "common": COMMON, "methods": METHODS}
    file.write_text(yaml.safe_dump({**values, **changes}))
    return read_experiment(file)


@pytest.mark.slow
def test_ray_gives_the_same_numbers(tmp_path, small_store, monkeypatch):
    pytest.importorskip("ray", reason="the ray extra is not installed")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    methods = [*METHODS, {"name": "bad", "settings": {"impute": "ppca", "impute_options": {"latent_dim": 9999}}}]
    experiment = asked(tmp_path, small_store, methods=methods)
    here = run_experiment(experiment, tmp_path / "local", jobs=1)
    # Paths relative to the folder one works in mean the same in a worker.
    monkeypatch.chdir(tmp_path)
    there = run_experiment(experiment, (tmp_path / "ray").relative_to(tmp_path), jobs=2, engine="ray")
    assert sorted(row["error"] for row in here["failed"]) == sorted(row["error"] for row in there["failed"])
    assert len(there["failed"]) == 2
    for name in ("clip-s0", "clip-s1", "calmrl-s0", "calmrl-s1"):
        local, ray = (tmp_path / place / name for place in ("local", "ray"))
        assert (local / "scores.parquet").read_bytes() == (ray / "scores.parquet").read_bytes()


def test_an_engine_that_there_is_not_is_refused(tmp_path, small_store, cli):
    asked(tmp_path, small_store)
    code, _, err = cli("experiment", tmp_path / "small.yaml", "--runs", tmp_path / "runs", "--engine", "rai")
    assert code == 2
    assert "unknown engine 'rai'; did you mean 'ray'?" in err
    assert not (tmp_path / "runs").exists()


def test_a_cluster_that_is_not_there_is_said_at_once(tmp_path, small_store, monkeypatch, cli):
    pytest.importorskip("ray", reason="the ray extra is not installed")
    asked(tmp_path, small_store)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        code, _, err = cli("experiment", tmp_path / "small.yaml", "--runs", tmp_path / "runs", "--engine", "ray")
    assert code == 2
    assert "no Ray cluster answers at RAY_ADDRESS=127.0.0.1" in " ".join(err.split())
    assert not (tmp_path / "runs").exists()


def finished(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "number", "code", "under_way"),
    # Ray is handed one run more than it has room for.
    [("local", signal.SIGINT, 130, 1), ("local", signal.SIGTERM, 143, 1), ("ray", signal.SIGTERM, 143, 2)],
)
def test_a_stopped_experiment_finishes_the_runs_under_way(tmp_path, small_store, monkeypatch, engine, number, code, under_way):
    """And begins no other; the same command goes on from there without making a run again."""
    if engine == "ray":
        pytest.importorskip("ray", reason="the ray extra is not installed")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked(tmp_path, small_store, seeds=[0, 1, 2], common={**COMMON, "epochs": 40, "patience": 40})
    words = ["experiment", str(tmp_path / "small.yaml"), "--runs", str(tmp_path / "runs"), "--engine", engine, "--jobs", "1"]
    command = [sys.executable, "-m", "calmrl_lab", *words]
    folder = tmp_path / "runs" / "small"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    # In the middle of the second run.
    while len(list(folder.glob("*/metrics.jsonl"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "stopping after the runs under way" in " ".join(said.split())
    before = finished(folder)
    assert len(before) == 1 + under_way
    assert all((folder / name / "scores.parquet").is_file() for name in before)
    subprocess.run([*command[:-3], "local", "--jobs", "1"], check=True, capture_output=True)
    after = finished(folder)
    assert len(after) == 6
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_a_second_interrupt_stops_at_once(tmp_path, small_store):
    asked(tmp_path, small_store, common={**COMMON, "epochs": 100_000, "patience": 100_000})
    words = ["experiment", str(tmp_path / "small.yaml"), "--runs", str(tmp_path / "runs"), "--jobs", "1"]
    process = subprocess.Popen([sys.executable, "-m", "calmrl_lab", *words], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("runs/small/*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert any("stopping after" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_ray_that_is_not_installed_is_an_extra_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(CalmrlError, match="'ray' is not installed, and --engine ray needs it"):
        check_engine("ray")


@pytest.mark.parametrize(
    ("store", "command"),
    [
        ("msrvtt.zarr", "extract --dataset msrvtt --media DIR --weights DIR --out"),
        ("openmoji.zarr", "extract --dataset openmoji --out"),
        ("mine.zarr", "extract --dataset DATASET --media DIR --weights DIR --out"),
    ],
)
def test_a_store_that_is_not_there_is_named_with_the_command_that_makes_it(tmp_path, store, command, cli):
    asked(tmp_path, tmp_path / store)
    code, _, err = cli("experiment", tmp_path / "small.yaml", "--runs", tmp_path / "runs")
    said = " ".join(err.split())
    assert code == 2
    assert f"the feature store '{tmp_path / store}' does not exist" in said
    assert command in said
    assert not (tmp_path / "runs").exists()
    code, out, _ = cli("experiment", tmp_path / "small.yaml", "--runs", tmp_path / "runs", "--dry-run")
    assert code == 0
    assert "what they cost is known once the stores are there" in out


@pytest.mark.slow
def test_other_directions_are_ranked_again(tmp_path, small_store):
    run_experiment(asked(tmp_path, small_store, seeds=[0], directions=["caption:vision"]), tmp_path / "a", jobs=1)
    run_experiment(asked(tmp_path, small_store, seeds=[0], directions=["vision:caption"]), tmp_path / "a", jobs=1)
    scores = pd.read_parquet(tmp_path / "a" / "clip-s0" / "scores.parquet")
    assert set(zip(scores["query"], scores["gallery"], strict=True)) == {("vision", "caption")}


@pytest.mark.slow
def test_failures_among_the_candidates_are_no_missing_runs(tmp_path, small_store, cli):
    grid = {"impute_options.latent_dim": [4, 9998, 9999]}
    methods = [{"name": "ppca", "settings": {"impute": "ppca"}, "grid": grid}]
    asked(tmp_path, small_store, methods=methods, tuning_seeds=[3], seeds=[0])
    code, out, err = cli("experiment", tmp_path / "small.yaml", "--runs", tmp_path / "runs", "--jobs", "1")
    assert code == 1
    assert out.startswith("1 run in")
    assert "2 runs failed, the first: " in err
