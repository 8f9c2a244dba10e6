"""Many items under a hard limit of memory: every stage passes over blocks, whatever the number of items."""

import importlib.util
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ITEMS = 200_000
# Address space, of which libraries take 1.3 GiB before any work; all features as float32 would be 0.7 GiB, with what PPCA makes of them several times that.
LIMIT = 5 << 30
COMMANDS = (
    "train-heads --store {store} --impute ppca --epochs 1 --set batch_size=1024 --run {folder}/run",
    "evaluate --run {folder}/run --direction m0:m1",
    "index --run {folder}/run --out {folder}/index --index-type ivf",
    "impute --store {store} --out {folder}/filled.zarr --method ppca",
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are those of Linux")
def test_every_stage_finishes_under_a_limit_of_memory(tmp_path):
    spec = importlib.util.spec_from_file_location("made_features", ROOT / "benchmarks" / "_made_features.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    store = made.write_features(tmp_path / "made.zarr", ITEMS)
    for words in COMMANDS:
        command = [sys.executable, "-m", "calmrl_lab.cli", *words.format(store=store, folder=tmp_path).split()]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
