"""Progress: silent unless asked, plain lines at most every ten seconds, bars on a terminal; every long command says where it is."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calmrl_lab.runtime import console, progress


@pytest.fixture
def quick(monkeypatch):
    """Work is worth a word at once."""
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(progress, "LOOK", 0.01)
    monkeypatch.setattr(progress._Lines, "last", -float("inf"))


def wait(seconds=0.1):
    time.sleep(seconds)


def test_python_is_silent_unless_asked(quick, capsys):
    for _ in progress.tracked(range(2), "working"):
        wait()
    assert capsys.readouterr().err == ""
    with progress.shown():
        for _ in progress.tracked(range(2), "working", unit="pieces"):
            wait()
    assert "working: 0/2 pieces" in capsys.readouterr().err
    with progress.shown(), progress.shown(False), progress.progress("hidden"):
        wait()
    assert capsys.readouterr().err == ""


def test_quiet_is_silent(quick, capsys, monkeypatch):
    monkeypatch.setattr(console, "quiet", True)
    with progress.shown(), progress.progress("working"):
        console.note("a note")
        wait()
    assert capsys.readouterr().err == ""


def test_lines_come_at_most_every_so_often(quick, capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.3)
    with progress.shown():
        for _ in range(10):
            with progress.progress("one of many", 5):
                wait(0.08)
    assert 2 <= len(capsys.readouterr().err.splitlines()) <= 4


def test_work_inside_of_work_is_told_with_what_it_belongs_to(quick, capsys):
    with progress.shown(), progress.progress("all", 3, "runs") as whole:
        whole.advance(1, "the first")
        with progress.progress("part", 7) as part:
            part.advance(2)
            wait()
    line = capsys.readouterr().err
    assert "all: 1/3 runs" in line
    assert "the first" in line
    assert "part: 2/7 items" in line
    assert "s left" in line


def test_work_that_fails_leaves_nothing_behind(quick, capsys):
    with progress.shown(), pytest.raises(ValueError, match="broken"), progress.progress("failing"):
        raise ValueError("broken")
    assert progress._watcher is None


# Every command that can take long, slowed down at the step that takes longest; {run}, {store} and {out} are filled in.
COMMANDS = {
    "objective": ("training.session.term_gradients", "train-heads --store {store} --impute ppca --epochs 1 --run {out}", "epoch 1: 0/"),
    "start": ("model.closed_form._stopped_early", "train-heads --store {store} --modalities vision,caption --epochs 0 --run {out}", "choosing the start by PPCA"),
    "features": ("training.session.fit_all", "train-heads --store {store} --modalities vision,caption --epochs 0 --run {out}", "similarities of features"),
    "stacking": ("training.session.stack", "train-heads --store {store} --modalities vision,caption --epochs 0 --run {out}", "weights of the similarities"),
    "EM": ("ppca.em.maximise", "impute --store {store} --out {out} --method ppca", "EM: "),
    "check": ("completion.held_out_check._errors", "impute --store {store} --out {out} --check", "checking on held-out items"),
    "evaluate": ("evaluation.evaluate.rank_both", "evaluate --run {run} --direction caption:vision", "ranking: 0/1 directions"),
    "curves": ("evaluation.missing_curves.rank_items", "curves --run {run} --query caption", "queries of caption: 0/"),
    "classify": ("evaluation.classification.accuracy_table", "classify --run {run} --label category", "classify: "),
    "diagnose": ("evaluation.diagnostics.chance_warning", "diagnose --run {run}", "diagnose: "),
    "index": ("search.index_folder.build_index_of_blocks", "index --run {run} --out {out}", "index: "),
    "verify": ("store.verification._damaged_values", "store verify {store}", "checking: "),
    "experiment": ("experiments.make_runs._outcomes", "experiment {experiment} --runs {out} --jobs 1", "0/1 runs"),
}  # fmt: skip
EXPERIMENT = "title: one run\nstore: {store}\nseeds: [0]\nmethods: [{{name: clip, method: clip, settings: {{epochs: 1}}}}]\n"
SLOWED = """
import importlib, sys, time
from calmrl_lab import cli
from calmrl_lab.runtime import progress
progress.FIRST, progress.EVERY, progress.LOOK = 0.2, 0.2, 0.05
module, _, name = sys.argv[1].rpartition(".")
place = importlib.import_module(module)
plain = getattr(place, name)
pauses = [1.0]
def slowed(*args, **options):
    time.sleep(pauses.pop() if pauses else 0.0)
    return plain(*args, **options)
setattr(place, name, slowed)
sys.argv = ["calmrl-lab", *sys.argv[2:]]
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [False, True], ids=["plain", "terminal"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_long_command_says_where_it_is(name, terminal, trained, small_store, tmp_path):
    place, words, expected = COMMANDS[name]
    (tmp_path / "some.yaml").write_text(EXPERIMENT.format(store=small_store))
    filled = words.format(run=trained.path, store=small_store, out=tmp_path / "out", experiment=tmp_path / "some.yaml")
    said = _said([sys.executable, "-c", SLOWED, f"calmrl_lab.{place}", *filled.split()], terminal)
    assert (expected.split(":")[0] if terminal else expected) in said, said[-3000:]


def _said(command, terminal):
    """What a command prints on standard error within its first seconds, where that is a terminal, or is not."""
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150"}
    root = Path(__file__).parents[2]
    if not terminal:
        done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, timeout=300)
        return done.stderr
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, cwd=root, env=environment) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            said += part
        process.wait(timeout=300)
    os.close(ours)
    return said.decode(errors="replace")
