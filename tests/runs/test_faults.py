"""Every step at which a command writes, killed once: the same command then gives the bytes of an undisturbed run, and nothing lies about."""

import json
import os
import shutil
import signal
import sys

import pytest
from reporting.synthetic_runs import RECIPES, write_experiment

from calmrl_lab.config import TrainConfig
from calmrl_lab.evaluation.evaluate import evaluate
from calmrl_lab.reporting.output.drawing import Figure
from calmrl_lab.reporting.report import write_report
from calmrl_lab.search.index_folder import build_gallery
from calmrl_lab.training.train import train

STEPS = ("rename", "replace", "unlink", "mkdir", "rmdir", "fsync")


def in_a_child(command, fatal=None):
    """Run `command` in a forked process, killed before its step number `fatal`; (number of steps, whether it was killed)."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            taken = 0

            def step(original):
                def counted(*arguments, **options):
                    nonlocal taken
                    if taken == fatal:
                        os.kill(os.getpid(), signal.SIGKILL)
                    taken += 1
                    return original(*arguments, **options)

                return counted

            for name in STEPS:
                setattr(os, name, step(getattr(os, name)))
            command()
            os.write(write, str(taken).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    assert killed or status == 0, "the command failed"
    return int(said or 0), killed


def content(folder):
    """Every file by name, without the seconds that a run took and the checksum of the record that holds them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "summary.json":
                data = {key: value for key, value in json.loads(data).items() if key not in ("seconds", "checksum")}
            found[str(path.relative_to(folder))] = data
    return found


@pytest.fixture(scope="module")
def finished(small_store, tmp_path_factory):
    return train(_config(small_store), tmp_path_factory.mktemp("faults") / "run")


def _config(store, **values):
    settings = {
        "objective": "clip",
        "impute": "none",
        "epochs": 2,
        "dim": 8,
        "checkpoint_every": 1,
        "modalities": ("vision", "caption"),
    }
    return TrainConfig(store=str(store), **{**settings, **values})


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True], ids=["new", "over an old one"])
@pytest.mark.parametrize("what", ["train", "evaluate", "index", "report"])
def test_every_step_killed_once(what, old, small_store, finished, tmp_path, record_property, monkeypatch):
    """`old`: the command replaces what another one of its kind has left."""
    if what == "report":
        # Drawing takes most of the time, and writes nothing.
        monkeypatch.setattr(Figure, "pdf", lambda figure: b"pdf")
        svg, drawn = Figure.svg, {}

        def once(figure, narrow=False):
            key = drawn["of"], figure.name, narrow
            return drawn.get(key) or drawn.setdefault(key, svg(figure, narrow))

        monkeypatch.setattr(Figure, "svg", once)
        source = write_experiment(tmp_path / "source", RECIPES[2:4], seeds=(0,), items=10)
        other = write_experiment(tmp_path / "other", RECIPES[:2], seeds=(0,), items=10)

    def command(place, earlier=False):
        if what == "train":
            train(_config(small_store, seed=int(earlier)), place, overwrite=True)
        elif what == "evaluate":
            evaluate(place, split="validation" if earlier else "test")
        elif what == "index":
            build_gallery(finished, place, split="validation" if earlier else "test")
        else:
            drawn["of"] = earlier
            write_report(other if earlier else source, place)

    if what == "report":
        # Drawn here once, for all children.
        for earlier in (False, True):
            command(tmp_path / f"drawn-{earlier}", earlier)

    def start(folder):
        folder.mkdir()
        if what == "evaluate":
            shutil.copytree(finished.path, folder / "run")
        if old:
            in_a_child(lambda: command(folder / "run", earlier=True))
        return folder / "run"

    undisturbed = start(tmp_path / "undisturbed")
    steps, _ = in_a_child(lambda: command(undisturbed))
    expected = content(undisturbed)
    fatal = 0
    while True:
        place = start(tmp_path / f"killed-{fatal}")
        _, killed = in_a_child(lambda place=place: command(place), fatal)
        if not killed:
            break
        in_a_child(lambda place=place: command(place))
        assert content(place) == expected, f"killed before step {fatal} of {steps}"
        assert os.listdir(place.parent) == ["run"], f"killed before step {fatal} of {steps}"
        shutil.rmtree(place.parent)
        fatal += 1
    assert fatal >= steps > 0
    record_property("kills", fatal)
    print(f"{what}{' over an old one' if old else ''}: {fatal} kills")
