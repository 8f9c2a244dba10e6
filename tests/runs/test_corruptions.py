"""Files of runs, indexes and report inputs, each damaged in many ways: a reader refuses them or gives the same numbers, and says so in one sentence."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from reporting.synthetic_runs import RECIPES, write_experiment

from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.comparison import compare_runs, runs_at
from calmrl_lab.evaluation.evaluate import evaluate
from calmrl_lab.reporting.results.collect import gather
from calmrl_lab.runs.experiment_folder import ExperimentFolder
from calmrl_lab.runs.run import Run
from calmrl_lab.search.index_folder import Gallery, build_gallery
from calmrl_lab.training.train import train

SETTINGS = {
    "objective": "calmrl",
    "impute": "ppca",
    "scenario": "pairs:0.5",
    "epochs": 1,
    "dim": 8,
    "modalities": ("vision", "audio", "caption"),
}


def config(store, **values):
    return TrainConfig(
        store=str(store), impute_options={"latent_dim": 4}, first_iterations=3, refresh_iterations=1, **{**SETTINGS, **values}
    )


def damages(folder, seed, flips=3):
    """(what was done, how to do it) for every file in `folder`: bits flipped at random places, cut off, emptied, longer, deleted, a folder
    instead, and the place of the next file taken."""
    random = np.random.default_rng(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in ("log.txt", "recall.svg"))
    for file, other in zip(files, files[1:] + files[:1], strict=True):
        whole, name = file.read_bytes(), file.relative_to(folder)
        for _ in range(flips):
            damaged = bytearray(whole)
            place = int(random.integers(len(whole)))
            damaged[place] ^= 1 << int(random.integers(8))
            yield f"{name}: a bit of byte {place} flipped", lambda file=file, damaged=damaged: file.write_bytes(damaged)
        for count in (0, len(whole) // 2, len(whole) - 3):
            yield f"{name}: cut off at {count}", lambda file=file, data=whole[:count]: file.write_bytes(data)
        yield f"{name}: longer", lambda file=file, whole=whole: file.write_bytes(whole + whole[-9:])
        yield f"{name}: deleted", lambda file=file: file.unlink()
        yield f"{name}: a folder instead", lambda file=file: (file.unlink(), file.mkdir())
        yield f"{name}: {other.relative_to(folder)} instead", lambda file=file, other=other: shutil.copy(other, file)


def survived(folder, scratch, changes, read, expected):
    """Number of damages after each of which `read` refuses in one sentence, or gives what is `expected`."""
    for what, change in changes:
        if scratch.exists():
            shutil.rmtree(scratch)
        shutil.copytree(folder, scratch)
        change()
        try:
            found = read(folder)
        except CalmrlError as error:
            found = None if "\n" not in error.message else error.message
        finally:
            shutil.rmtree(folder)
            shutil.copytree(scratch, folder)
        assert found in (None, expected), f"changed silently, or in several lines: {what}"
    return len(changes)


@pytest.fixture(scope="module")
def runs(small_store, tmp_path_factory):
    """Two evaluated runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("corrupted")
    for seed in (0, 1):
        evaluate(train(config(small_store, seed=seed), folder / f"calmrl-s{seed}"))
    return folder


def numbers_of(path):
    """All that commands take from a run."""
    run = Run.open(path)
    model = run.model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        vectors = [model.project(m, torch.randn(3, d, generator=generator)).numpy().tobytes() for m, d in model.dims.items()]
    frames = [run.read_frame(name).to_csv() for name in sorted({run.SCORES, *(run.digests(run.EVALUATION) or {})})]
    return run.config, run.summary, run.environment, run.metrics, run.evaluation, vectors, frames


def test_runs(runs, tmp_path):
    path = runs / "calmrl-s0"
    count = survived(path, tmp_path / "kept", list(damages(path, seed=0)), numbers_of, numbers_of(path))
    assert count >= 90


def swaps(folder, names):
    """Files of the same name, alone and in pairs, taken over from another run."""
    one, other = (folder / name for name in names)
    files = sorted(
        path.relative_to(one) for path in one.rglob("*") if path.is_file() and (other / path.relative_to(one)).is_file()
    )
    for chosen in (
        *itertools.combinations(files, 1),
        *itertools.combinations(files, 2),
        tuple(f for f in files if f.suffix == ".parquet"),
    ):

        def change(chosen=chosen):
            for file in chosen:
                shutil.copy(other / file, one / file)

        yield f"taken from another run: {', '.join(map(str, chosen))}", change


@pytest.mark.slow
def test_files_of_another_run(runs, tmp_path):
    def read(folder):
        return numbers_of(folder / "calmrl-s0")

    changes = list(swaps(runs, ("calmrl-s0", "calmrl-s1")))
    assert survived(runs, tmp_path / "kept", changes, read, read(runs)) >= 50


def test_indexes(runs, tmp_path):
    pytest.importorskip("faiss", reason="FAISS is not installed (extra cpu or gpu)")
    build_gallery(runs / "calmrl-s0", tmp_path / "index", split="test")

    def read(path):
        gallery = Gallery.open(path)
        asked = np.ones((2, gallery.model.dims["caption"]), dtype=np.float32)
        return gallery.facts, gallery.search(gallery.embed("caption", asked)).to_csv()

    changes = list(damages(tmp_path / "index", seed=1))
    assert survived(tmp_path / "index", tmp_path / "kept", changes, read, read(tmp_path / "index")) >= 40


@pytest.mark.slow
def test_report_inputs(tmp_path):
    """A report leaves a damaged run out and says so."""
    folder = write_experiment(tmp_path / "experiment", RECIPES[2:4], seeds=(0, 1), items=12, extras=True)

    def read(folder):
        gathered = gather(folder)
        if gathered.problems:
            raise CalmrlError("; ".join(problem.sentence for problem in gathered.problems))
        frames = [
            run.frames[name].to_csv() for method in gathered.methods for run in method.runs for name in sorted(run.frames)
        ]
        shown = [(method.label, method.role, method.tuning, method.seeds) for method in gathered.methods]
        return gathered.title, gathered.notes, gathered.split, gathered.store, gathered.extra, shown, frames

    for run in folder.glob("*-s*"):
        Run(run).amend_summary(asked={})  # as an experiment leaves it
    record = ExperimentFolder(folder)
    record.write({**record.read(), "finished": True})
    expected = read(folder)
    changes = list(damages(folder, seed=2, flips=2))
    changes += [*swaps(folder, ("pmrl-s0", "pmrl-s1")), *swaps(folder, ("pmrl-s0", "calmrl-ppca-s0"))]
    other = [("pmrl-s0", "pmrl-s1"), ("calmrl-ppca-s0", "calmrl-ppca-s1")]
    changes += [
        (
            f"{to} is a copy of {of}",
            lambda of=of, to=to: (shutil.rmtree(folder / to), shutil.copytree(folder / of, folder / to)),
        )
        for of, to in other
    ]
    changes += [(f"{name} deleted", lambda name=name: shutil.rmtree(folder / name)) for name in ("pmrl-s0", "calmrl-ppca-s1")]
    assert survived(folder, tmp_path / "kept", changes, read, expected) >= 150


@pytest.mark.slow
def test_runs_that_are_resumed(small_store, tmp_path, stop_training):
    """A run that was killed goes on to the same model, or is refused."""
    asked = config(small_store, epochs=3, checkpoint_every=1)
    stop_training(asked, tmp_path / "run", 2)

    def read(folder):
        run = Run.open(folder)
        train(run.config, folder, resume=True)
        return {path.name: path.read_bytes() for path in sorted((folder / "model").iterdir())}

    changes = [change for change in damages(tmp_path / "run", seed=3, flips=1) if "environment" not in change[0]]
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    assert survived(tmp_path / "run", tmp_path / "kept", changes, read, read(tmp_path / "whole")) >= 15


@pytest.mark.slow
def test_scores_that_are_compared(runs, tmp_path):
    def read(folder):
        pair = [runs_at(folder / f"calmrl-s{seed}") for seed in (0, 1)]
        return compare_runs(*pair, np.random.default_rng(0)).to_csv()

    changes = [
        (f"calmrl-s0/{what}", change)
        for what, change in damages(runs / "calmrl-s0", seed=4, flips=1)
        if "scores" in what or "json:" in what
    ]
    assert survived(runs, tmp_path / "kept", changes, read, read(runs)) >= 20
