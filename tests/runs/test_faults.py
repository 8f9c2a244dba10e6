"""Every step at which a command writes, killed once: the same command then gives the bytes of an undisturbed run, and nothing lies about.

A sample of the steps of every command is killed; with CALMRL_LAB_ALL_FAULTS=1 in the environment, all of them.
"""

import builtins
import io
import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
from reporting.synthetic_runs import RECIPES, write_experiment
from runs.forked import forked

from calmrl_lab.completion.fill_store import complete_store
from calmrl_lab.config import TrainConfig
from calmrl_lab.evaluation.classification import classify_run
from calmrl_lab.evaluation.evaluate import evaluate
from calmrl_lab.evaluation.missing_curves import run_curves
from calmrl_lab.experiments import make_runs
from calmrl_lab.experiments.job import perform
from calmrl_lab.experiments.runner import run_experiment
from calmrl_lab.experiments.spec import Experiment
from calmrl_lab.reporting.output.drawing import Figure
from calmrl_lab.reporting.report import write_report
from calmrl_lab.search.index_folder import build_gallery
from calmrl_lab.store import FeatureStore, export_store, import_features
from calmrl_lab.store.convert.merge import merge
from calmrl_lab.training.train import train

STEPS = ("rename", "replace", "unlink", "mkdir", "rmdir", "fsync")
ALL = bool(os.environ.get("CALMRL_LAB_ALL_FAULTS"))
SAMPLED = 4


def in_a_child(command, fatal=None):
    """Run `command` in a forked process, killed before its step number `fatal`; (number of steps, whether it was killed). Steps are calls of
    `STEPS`, and every file that is opened for writing."""

    def counting(write):
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        taken = 0

        def count():
            nonlocal taken
            if taken == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            taken += 1

        def step(original):
            def counted(*arguments, **options):
                count()
                return original(*arguments, **options)

            return counted

        def opened(file, mode="r", *arguments, original=open, **options):
            if set(mode) & set("wax+"):
                count()
            return original(file, mode, *arguments, **options)

        for name in STEPS:
            setattr(os, name, step(getattr(os, name)))
        io.open = builtins.open = opened
        command()
        os.write(write, str(taken).encode())
        return 0

    said, code = forked(counting)
    killed = code == -signal.SIGKILL
    assert killed or code == 0, f"the command failed: exit code {code}"
    return int(said or 0), killed


# What differs between two equal runs: how long they took, and the checksums of the records that say so.
TIMES = ("seconds", "core_seconds", "seconds_in_all", "checksum", "provenance")


def content(place):
    """Every file by name, without the seconds that a run took and the checksums of the records that hold them."""
    found = {}
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        if path.is_file() and path.name != "provenance.json":
            data = path.read_bytes()
            if path.name in ("summary.json", "store.json"):
                data = {key: value for key, value in json.loads(data).items() if key not in TIMES}
            found[str(path.relative_to(place))] = data
    return found


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


class Given:
    """What the commands start from."""

    def __init__(self, folder, store):
        self.store = store
        self.run = train(_config(store), folder / "run")
        self.sources = [
            write_experiment(folder / f"source-{n}", RECIPES[2 * n : 2 * n + 2], seeds=(0,), items=10) for n in range(2)
        ]
        random = np.random.default_rng(0)
        for n in range(2):
            np.savez(folder / f"a{n}.npz", features=random.standard_normal((9, 4)), ids=[f"i{j}" for j in range(n, n + 9)])
            np.savez(folder / f"b{n}.npz", features=random.standard_normal((9, 3)), ids=[f"i{j}" for j in range(9)])
        self.arrays = [{"a": folder / f"a{n}.npz", "b": folder / f"b{n}.npz"} for n in range(2)]
        # One split each, so that the stores agree when they are merged.
        one = {"train": 1.0}
        self.small = [
            import_features(folder / f"small-{n}.zarr", arrays, fractions=one) for n, arrays in enumerate(self.arrays)
        ]
        apart = {"c": folder / "a0.npz"}
        self.apart = import_features(folder / "apart.zarr", apart, fractions=one)

    def experiment(self, earlier):
        return Experiment(
            title="faults",
            store=str(self.store),
            seeds=(0, 1) if earlier else (0,),
            common={"modalities": ["vision", "caption"], "dim": 8, "epochs": 1 + earlier},
            methods=[{"name": "clip", "method": "clip"}],
        )


# command(given, place, earlier): the command, or with `earlier` another one of its kind, whose result the command replaces.
COMMANDS = {
    "train": lambda given, place, earlier: train(_config(given.store, seed=int(earlier)), place, overwrite=True),
    "ensemble": lambda given, place, earlier: train(
        _config(given.store, seed=int(earlier), epochs=1, members=({"learning_rate": 0.003}, {"dim": 6})), place, overwrite=True
    ),
    "evaluate": lambda given, place, earlier: evaluate(place, split="validation" if earlier else "test"),
    "curves": lambda given, place, earlier: run_curves(
        place, scorers=["centroid"], scenarios=["random:0.5"], queries=["caption"], split="validation" if earlier else "test"
    ),
    "classify": lambda given, place, earlier: classify_run(
        place, "category", kinds=("centroid",), split="validation" if earlier else "test"
    ),
    "index": lambda given, place, earlier: build_gallery(given.run, place, split="validation" if earlier else "test"),
    "report": lambda given, place, earlier: write_report(given.sources[earlier], place),
    "experiment": lambda given, place, earlier: run_experiment(given.experiment(earlier), place, jobs=1),
    "impute": lambda given, place, earlier: complete_store(given.small[earlier], place, "mean", overwrite=True),
    "import": lambda given, place, earlier: import_features(place, given.arrays[earlier], overwrite=True),
    "merge": lambda given, place, earlier: merge([given.small[earlier], given.apart], place, overwrite=True),
    **{
        f"export {form}": lambda given, place, earlier, form=form: export_store(
            FeatureStore.open(given.small[earlier]), place, form, overwrite=True
        )
        for form in ("hdf5", "npz", "parquet")
    },
}
IN_A_RUN = ("evaluate", "curves", "classify")


@pytest.fixture(scope="module")
def given(small_store, tmp_path_factory):
    return Given(tmp_path_factory.mktemp("faults"), small_store)


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True], ids=["new", "over an old one"])
@pytest.mark.parametrize("what", COMMANDS)
def test_every_step_killed_once(what, old, given, tmp_path, record_property, monkeypatch):
    """`old`: the command replaces what another one of its kind has left."""
    if what == "report":
        draw_once(monkeypatch)
        for earlier in (False, True):
            # Drawn here, for all children.
            COMMANDS[what](given, tmp_path / f"drawn-{earlier}", earlier)
    # Runs of an experiment are made in its own process, so that each of their steps can be killed too.
    monkeypatch.setattr(make_runs, "outcomes_here", lambda todo, *_: ((job, perform(job)) for job in todo))

    def command(place, earlier=False):
        COMMANDS[what](given, place, earlier)

    def start(folder):
        folder.mkdir()
        if what in IN_A_RUN:
            shutil.copytree(given.run.path, folder / "run")
        if old:
            in_a_child(lambda: command(folder / "run", earlier=True))
        return folder / "run"

    undisturbed = start(tmp_path / "undisturbed")
    steps, _ = in_a_child(lambda: command(undisturbed))
    expected = content(undisturbed)
    assert steps > 0
    fatal = range(steps) if ALL or steps <= SAMPLED else sorted(np.random.default_rng(0).choice(steps, SAMPLED, replace=False))
    for step in fatal:
        place = start(tmp_path / f"killed-{step}")
        _, killed = in_a_child(lambda place=place: command(place), step)
        assert killed
        in_a_child(lambda place=place: command(place))
        assert content(place) == expected, f"killed before step {step} of {steps}"
        assert os.listdir(place.parent) == ["run"], f"killed before step {step} of {steps}"
        shutil.rmtree(place.parent)
    record_property("kills", len(fatal))
    print(f"{what}{' over an old one' if old else ''}: {len(fatal)} of {steps} steps killed")


def draw_once(monkeypatch):
    """Figures are drawn once: that takes most of the time of a report, and writes nothing."""
    monkeypatch.setattr(Figure, "pdf", lambda figure: b"pdf")
    svg, drawn = Figure.svg, {}

    def once(figure, narrow=False):
        key = figure.name, figure.title, figure.caption, figure.description, figure.basis, narrow
        return drawn.get(key) or drawn.setdefault(key, svg(figure, narrow))

    monkeypatch.setattr(Figure, "svg", once)
