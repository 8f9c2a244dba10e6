"""Whole commands on a GPU give what they give on the CPU. Skipped where there is none."""

import json

import pytest
import torch

from calmrl_lab.runs.run import Run

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

DATA = ("--modalities", "vision,audio,caption,subtitle", "--scenario", "pairs:0.25", "--epochs", "4")
START = ("--init", "ppca", "--set", "init_options.latent_dim=24", "--set", "init_options.components=60")
METHODS = {
    "recommended": (),
    "calmrl": ("--impute", "ppca", "--set", "impute_options.latent_dim=8"),
    "gated": ("--impute", "ppca", "--risk-control", "--set", "risk_level=0.2"),
    "ridge": ("--objective", "clip", "--impute", "ridge", "--set", "impute_as_observed=true"),
    "knn": ("--objective", "clip", "--impute", "knn", "--set", "impute_as_observed=true"),
    "mixture": ("--impute", "ppca-mixture", "--set", "impute_options.components=2"),
    "pmrl": ("--objective", "pmrl", "--impute", "none"),
    "likelihood-ratio": (*START, "--objective", "none", "--impute", "none", "--similarity", "likelihood-ratio"),
    "sum": (*START, "--objective", "clip", "--impute", "none", "--similarity", "sum"),
    "members": ("--set", "members=[{objective: none, init: ppca}, {objective: clip, impute: none}]"),
    "kernel": ("--objective", "clip", "--impute", "none", "--set", "features=kernel"),
    "mlp": ("--objective", "clip", "--impute", "none", "--head", "mlp"),
    "warm": (
        "--impute", "ppca", "--warm-up", "STORE", "--set", "warm_up_scenario=share:0.3", "--set", "warm_up_epochs=2",
        "--scenario", "rest:0.3+pairs:0.25",
    ),
}  # fmt: skip


def finished(cli, store, words, device, path):
    words = [str(store) if word == "STORE" else word for word in words]
    code, _, said = cli("train-heads", "--store", store, *DATA, *words, "--device", device, "--run", path)
    assert code == 0, said
    code, out, said = cli("evaluate", "--run", path, "--device", device, "--json")
    assert code == 0, said
    json.loads(out)
    return Run.open(path)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_on_a_gpu_is_the_run_on_the_cpu(method, cli, small_store, tmp_path):
    here, there = (finished(cli, small_store, METHODS[method], device, tmp_path / device) for device in ("cpu", "cuda"))
    assert there.summary["validation_mrr"] == pytest.approx(here.summary["validation_mrr"], abs=0.01)
    for name in ("scores.parquet", "imputation.parquet", "anchors.parquet"):
        assert (here.path / name).is_file() == (there.path / name).is_file()
    ranks = [
        1 + run.read_frame("scores.parquet")[["greater", "equal"]].mul([1, 0.5]).sum(axis=1).mean() for run in (here, there)
    ]
    assert ranks[1] == pytest.approx(ranks[0], rel=0.03)
    # A run trained on one is evaluated on the other.
    code, _, said = cli("evaluate", "--run", there.path, "--device", "cpu")
    assert code == 0, said


@pytest.mark.parametrize("method", ["recommended", "calmrl", "likelihood-ratio", "sum"])
def test_what_comes_after_a_run_works_on_a_gpu(method, cli, small_store, tmp_path):
    run = finished(cli, small_store, METHODS[method], "cuda", tmp_path / "run").path
    for words in (
        ("curves", "--run", run, "--query", "caption", "--scenario", "random:0.5", "--device", "cuda"),
        ("classify", "--run", run, "--label", "category", "--classifier", "knn", "--device", "cuda"),
        ("diagnose", "--run", run, "--device", "cuda"),
    ):
        code, _, said = cli(*words)
        assert code == 0, said
