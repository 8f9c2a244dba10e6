"""Several processes under torchrun train what one process trains with the same global batch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from calmrl_lab.runs.run import Run

WORDS = [
    "train-heads", "--modalities", "vision,audio,caption,subtitle", "--scenario", "pairs:0.25", "--epochs", "3", "--device", "cpu",
    "--set", "dim=16", "--set", "batch_size=89", "--set", "impute_options.latent_dim=4", "--set", "first_iterations=5",
]  # fmt: skip


def trained(small_store, folder, count, *extra):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "--"]
    words = [*launch, "calmrl_lab", *WORDS, *extra, "--store", str(small_store), "--run", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return Run.open(folder), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["calmrl", "gram", "symile"])
def test_three_processes_are_one(small_store, tmp_path, objective):
    """Of three: batches of 89, 89 and 2 items, of which the third process has nothing in the last."""
    extra = ("--objective", objective, "--impute", "ppca" if objective == "calmrl" else "none")
    extra = extra if objective == "calmrl" else (*extra, "--set", "impute_options={}")
    runs = [trained(small_store, tmp_path / str(count), count, *extra) for count in (1, 3)]
    (one, _), (two, said) = runs
    assert said.count("written to") == 1, "one process speaks"
    assert (one.summary["processes"], two.summary["processes"]) == (1, 3)
    lines = [[json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()] for run in (one, two)]
    assert len(lines[0]) == len(lines[1])
    for a, b in zip(*lines, strict=True):
        assert a["validation_mrr"] == pytest.approx(b["validation_mrr"], abs=1e-3)
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    first, second = (run.read_tensors("model/model.safetensors")[0] for run in (one, two))
    for key, value in first.items():
        # Sums over items (log-likelihoods) are large: their rounding is relative.
        np.testing.assert_allclose(second[key], value, rtol=1e-5, atol=1e-4)
