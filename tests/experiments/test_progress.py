"""Live progress: one line per run under way, moved by its log, and one for all."""

import io
import json
import os
from types import SimpleNamespace

import pytest
from rich.console import Console

from calmrl_lab.experiments.progress import last_epoch, watched
from calmrl_lab.runtime import console


def job(folder, name, epochs=4, warm=0):
    path = folder / name
    path.mkdir()
    config = SimpleNamespace(epochs=epochs, warm_up_epochs=warm, warm_up="store" if warm else None)
    return SimpleNamespace(path=path, config=config)


def log(job, epoch, score, end="\n"):
    with open(job.path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"epoch": epoch, "validation_mrr": score}) + end)


@pytest.fixture
def terminal(monkeypatch):
    made = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(console, "err", made)
    return made


def test_a_run_under_way_has_a_line_until_it_has_ended(tmp_path, terminal):
    first, second, stale = job(tmp_path, "a-s0", warm=2), job(tmp_path, "b-s0"), job(tmp_path, "c-s0")
    log(stale, 3, 0.9)
    os.utime(stale.path / "metrics.jsonl", ns=(1, 1))
    with watched("all", [first, second, stale]) as lines:
        log(first, 2, 0.25)
        lines.look()
        assert set(lines.shown) == {"a-s0"}
        task = lines.bars.tasks[-1]
        assert (task.description.strip(), task.completed, task.total) == ("a-s0", 2, 6)
        assert task.fields["detail"] == "validation MRR 0.250"
        log(second, 1, 0.1)
        lines.advance(1, "a-s0")
        lines.look()
        assert set(lines.shown) == {"b-s0"}
        assert lines.bars.tasks[0].completed == 1
        lines.advance(1, "b-s0")
        lines.advance(1, "c-s0")
        assert len(lines.bars.tasks) == 1


def test_a_line_that_is_being_written_is_not_read(tmp_path):
    one = job(tmp_path, "a")
    assert last_epoch(one.path) == (0, 0.0)
    log(one, 1, 0.5)
    with open(one.path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "val')
    assert last_epoch(one.path) == (1, 0.5)


def test_elsewhere_than_on_a_terminal_plain_lines_are_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "err", Console(file=io.StringIO(), width=120))
    with watched("all", [job(tmp_path, "a")]) as lines:
        lines.advance(1, "a")
    assert "all: 1/1" in console.err.file.getvalue()
