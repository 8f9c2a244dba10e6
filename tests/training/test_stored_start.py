"""Training from the projection weights that a store brings: they are the start, it is measured before the first step, and a run that only gets
worse keeps it."""

import json

import numpy as np
import pytest

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.schema import ModalitySpec
from calmrl_lab.store.writer import write_store
from calmrl_lab.training.train import train_heads

NAMES = {"vision": "contra_head_v", "caption": "contra_head_t"}
DIMS = {"vision": 24, "caption": 16}
SHARED = 8


def latent_rows(n=160, seed=0):
    """Features of two encoders of their own, and the heads that take both to one space."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, SHARED))
    features, heads = {}, {}
    for name, d in DIMS.items():
        axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
        rows = np.concatenate([latent + 0.3 * rng.normal(size=latent.shape), rng.normal(size=(n, d - SHARED))], axis=1)
        features[name] = (rows @ axes).astype(np.float32)
        heads[NAMES[name]] = axes[:SHARED].astype(np.float32)
    return features, heads


def store_with_heads(path, heads, features):
    n = len(features["vision"])
    specs = [ModalitySpec(name, "made", f"made-{name}", d, "float32") for name, d in DIMS.items()]
    ids = [f"i{number}" for number in range(n)]
    split = ["train"] * (n // 2) + ["validation"] * (n // 4) + ["test"] * (n - n // 2 - n // 4)
    offsets = dict.fromkeys(DIMS, np.arange(n + 1))
    write_store(path, dataset="made", modalities=specs, ids=ids, split=split, features=features, offsets=offsets, heads=heads)
    return path


def validation_line(run, number):
    return json.loads((run.path / "metrics.jsonl").read_text().splitlines()[number])


@pytest.mark.parametrize("objective", ["clip", "pmrl"])
def test_a_run_that_only_gets_worse_keeps_the_stored_heads(tmp_path, objective):
    features, heads = latent_rows()
    store = store_with_heads(tmp_path / "s.zarr", heads, features)
    run = train_heads(store, method=objective, init="stored", learning_rate=3.0, epochs=3, run=tmp_path / "run")
    start = validation_line(run, 0)
    assert start["epoch"] == 0
    assert start["validation_mrr"] > 0.8
    assert all(validation_line(run, number)["validation_mrr"] < start["validation_mrr"] for number in (1, 2, 3))
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["best_epoch"] == 0
    assert summary["validation_mrr"] == start["validation_mrr"]
    tensors = run.read_tensors("model/model.safetensors")[0]
    kept = [value for value in tensors.values() if getattr(value, "shape", None) in {(SHARED, d) for d in DIMS.values()}]
    for head in heads.values():
        assert any(head.shape == value.shape and np.allclose(head, value, atol=1e-6) for value in kept)


def test_small_steps_from_stored_heads_are_no_worse_than_the_heads(tmp_path):
    features, heads = latent_rows()
    store = store_with_heads(tmp_path / "s.zarr", heads, features)
    run = train_heads(store, method="clip", init="stored", learning_rate=1e-3, epochs=5, run=tmp_path / "run")
    random = train_heads(store, method="clip", init="random", dim=SHARED, learning_rate=1e-3, epochs=5, run=tmp_path / "random")
    reached = [json.loads((one.path / "summary.json").read_text())["validation_mrr"] for one in (run, random)]
    assert reached[0] >= validation_line(run, 0)["validation_mrr"] > reached[1]


def test_heads_that_are_not_all_there_are_refused(tmp_path):
    features, heads = latent_rows()
    heads.pop("contra_head_t")
    store = store_with_heads(tmp_path / "s.zarr", heads, features)
    with pytest.raises(CalmrlError, match="holds no projection weights for: caption"):
        train_heads(store, method="clip", init="stored", epochs=1, run=tmp_path / "run")
