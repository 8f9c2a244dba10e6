"""Metrics of runs as TensorBoard events: every finite number, at its step, nothing else touched."""

import json

import pytest

from calmrl_lab.config import TrainConfig
from calmrl_lab.runs.run import Run


@pytest.fixture
def runs(tmp_path):
    for name in ("a", "b"):
        with Run.create(tmp_path / "runs" / name, TrainConfig(store="x", objective="clip")) as run:
            pass
        for step in (0, 3):
            run.append(
                "metrics.jsonl",
                json.dumps({"epoch": 1, "phase": "train", "step": step, "loss": 2.0 / (step + 1), "bad": float("nan")}),
            )
    return tmp_path / "runs"


def test_every_number_arrives_at_its_step(runs, tmp_path, cli):
    pytest.importorskip("tensorboard", reason="extra tracking is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # the second time replaces the first
        code, out, err = cli("track", "--runs", runs, "--out", tmp_path / "tb", "--json")
        assert code == 0, err
        assert json.loads(out) == {"a": 2, "b": 2}
    events = EventAccumulator(str(tmp_path / "tb" / "a")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 2.0), (3, 0.5)]


def test_foreign_files_and_folders_without_runs_are_refused(runs, tmp_path, cli):
    pytest.importorskip("tensorboard", reason="extra tracking is not installed")
    assert cli("track", "--runs", tmp_path / "runs" / "a", "--out", tmp_path / "tb")[0] == 0
    (tmp_path / "tb" / "a" / "thesis.tex").write_text("mine")
    code, _, err = cli("track", "--runs", runs, "--out", tmp_path / "tb")
    assert code == 2
    assert "holds other files" in err
    (tmp_path / "empty").mkdir()
    code, _, err = cli("track", "--runs", tmp_path / "empty")
    assert code == 2
    assert "holds no run with metrics" in err


def test_without_tensorboard_it_says_what_to_install(runs, tmp_path, cli, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, err = cli("track", "--runs", runs, "--out", tmp_path / "tb")
    assert code == 2
    assert "tracking" in err
