"""Every command that writes, where files may not grow: one sentence, exit code 1, and what was there before is as it was."""

import os
import shutil
import sys

import numpy as np
import pytest
from reporting.synthetic_runs import RECIPES, write_experiment
from runs.forked import forked

from calmrl_lab.cli import main

resource = pytest.importorskip("resource", reason="this system limits no files")


def limited(words, limit):
    """(exit code, what was said) of the command line in a forked process whose files may have `limit` bytes."""

    def command(write):
        os.dup2(write, 1)
        os.dup2(write, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        sys.argv = ["calmrl-lab", *map(str, words)]
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        return code

    said, code = forked(command)
    return code, said


def content(folder):
    """Every file below `folder` by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def inputs(small_store, trained, tmp_path_factory):
    """What the commands read, and what some of them replace."""
    folder = tmp_path_factory.mktemp("limits")
    write_experiment(folder / "experiment", RECIPES[2:4], seeds=(0,), items=12)
    shutil.copytree(trained.path, folder / "run")
    np.save(folder / "a.npy", np.random.default_rng(0).standard_normal((400, 40)).astype(np.float32))
    return folder


COMMANDS = {
    "export hdf5": ("store export STORE --out OUT/a.h5", 300_000),
    "export npz": ("store export STORE --out OUT/a.npz", 300_000),
    "export parquet": ("store export STORE --out OUT/a.parquet", 100_000),
    "import": ("store import --out OUT/new.zarr --modality a=IN/a.npy", 20_000),
    "impute": ("impute --store STORE --out OUT/full.zarr --method mean", 20_000),
    "train": ("train-heads --store STORE --method clip --epochs 1 --set dim=8 --run OUT/run", 3_000),
    "train over an old run": ("train-heads --store STORE --method clip --epochs 1 --set dim=8 --run IN/run --overwrite", 300),
    "evaluate": ("evaluate --run IN/run", 3_000),
    "index": ("index --run IN/run --out OUT/index", 3_000),
    "report": ("report --runs IN/experiment --out OUT/report", 3_000),
}


# A report and an evaluation take long.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ("report", "evaluate") else []) for name in COMMANDS]
)
def test_no_room(name, inputs, small_store, tmp_path):
    words, limit = COMMANDS[name]
    out = tmp_path / "out"
    out.mkdir()
    words = [w.replace("STORE", str(small_store)).replace("OUT", str(out)).replace("IN", str(inputs)) for w in words.split()]
    before = content(inputs)
    code, said = limited(words, limit)
    assert code == 1, said
    assert "Traceback" not in said
    assert "larger than a file may be here" in " ".join(said.split())
    assert content(inputs) == before
    left = {path for path in content(out) if not path.startswith("run/")}
    assert left == set(), said
