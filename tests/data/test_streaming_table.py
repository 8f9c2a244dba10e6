"""Training from a store that is read as it is needed: the same items under the same masks, in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calmrl_lab.config import TrainConfig
from calmrl_lab.data import streaming_table as streamed
from calmrl_lab.data.table import load_table
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.evaluate import evaluate
from calmrl_lab.runs.run import Run
from calmrl_lab.store import FeatureStore, ModalitySpec, write_store
from calmrl_lab.training.train import train

CALMRL = {"objective": "calmrl", "impute": "ppca", "impute_options": {"latent_dim": 4}}
FOUR = ("vision", "audio", "caption", "subtitle")
QUICK = {"epochs": 3, "dim": 16, "batch_size": 64, "first_iterations": 5, "refresh_iterations": 2, "checkpoint_every": 1}


def config(store, **changes):
    values = {"store": str(store), "modalities": FOUR, "scenario": "pairs:0.25", **CALMRL, **QUICK}
    return TrainConfig(**{**values, **changes})


@pytest.fixture
def tables(small_store):
    store = FeatureStore.open(small_store)
    return load_table(store, FOUR), streamed.open_table(store, FOUR, "cpu", "stream")


def test_batches_show_every_item_once_with_its_own_rows(tables):
    table, stream = tables
    seen = []
    for batch in stream.batches(64, torch.Generator().manual_seed(0)):
        expected = table.gather(batch.items, None)
        assert all(torch.equal(a, b) for a, b in zip(batch.features, expected, strict=True))
        assert torch.equal(batch.mask, table.mask[batch.items])
        seen += batch.items.tolist()
    assert sorted(seen) == list(range(len(table)))
    again = [batch.items.tolist() for batch in stream.batches(64, torch.Generator().manual_seed(1))]
    assert [item for items in again for item in items] != seen


def test_a_last_batch_of_one_is_joined(tables):
    _, stream = tables
    part = stream.select(np.arange(65))
    assert [len(batch.items) for batch in part.batches(64, torch.Generator().manual_seed(0))] == [65]


def test_selected_items_keep_masks_ids_and_rows(tables):
    table, stream = tables
    chosen = np.array([17, 3, 200])
    hidden = table.mask.clone()
    hidden[:, 1] = False
    part = stream.with_mask(hidden).select(chosen)
    expected = table.with_mask(hidden).select(np.sort(chosen))
    loaded = part.in_memory()
    assert list(part.ids) == list(loaded.ids) == list(expected.ids)
    assert list(part.group) == list(expected.group)
    assert torch.equal(loaded.mask, expected.mask)
    assert all(torch.equal(a, b) for a, b in zip(loaded.rows, expected.rows, strict=True))
    assert len(stream.sample(10)) == 10
    assert stream.sample(10**6).rows[0].shape == table.rows[0].shape


def test_blocks_are_the_whole_table(tables, monkeypatch):
    table, stream = tables
    monkeypatch.setattr(streamed, "BLOCK", 70)
    blocks = list(stream.blocks())
    assert [len(block) for block in blocks] == [70, 70, 70, 70, 20]
    assert torch.equal(torch.cat([block.rows[2] for block in blocks]), table.rows[2])


def test_auto_looks_at_the_free_memory(small_store, monkeypatch):
    store = FeatureStore.open(small_store)
    needed = streamed.needed_bytes(store, FOUR)
    # Features are float16: the rows, a copy of those of training, and float32 of all.
    assert needed == sum((2 + 2 + 4) * store.features(m).size for m in FOUR)
    monkeypatch.setattr(streamed, "free_bytes", lambda: 2 * needed)
    assert not isinstance(streamed.open_table(store, FOUR, "cpu"), streamed.StreamedTable)
    monkeypatch.setattr(streamed, "free_bytes", lambda: 2 * needed - 1)
    assert isinstance(streamed.open_table(store, FOUR, "cpu"), streamed.StreamedTable)
    assert streamed.free_bytes() > 0


def test_a_streamed_run_learns_resumes_and_is_evaluated(small_store, tmp_path, stop_training):
    asked = config(small_store, memory="stream")
    run = train(asked, tmp_path / "whole")
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[1]["loss"]
    assert run.summary["imputer_noise_scale"] >= 1
    table = evaluate(run, device="cpu").table()
    assert len(table) == 12

    stop_training(asked, tmp_path / "halved", 2)
    halved = train(asked, tmp_path / "halved", resume=True)
    first, second = (r.read_tensors("model/model.safetensors")[0] for r in (run, halved))
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_summed_statistics_fit_as_rows_do(small_store, tables, monkeypatch):
    from calmrl_lab.model.projection import Heads
    from calmrl_lab.training.online_imputer import OnlineImputer

    table, stream = tables
    mask = table.mask.clone()
    mask[::2, 0], mask[1::3, 2] = False, False
    heads = Heads(table.dims, 16)
    monkeypatch.setattr(streamed, "BLOCK", 70)
    fillers = [OnlineImputer("ppca", {"latent_dim": 4}, FOUR, table) for _ in range(2)]
    for filler, items in zip(fillers, (table, stream), strict=True):
        filler.refresh(heads, items.with_mask(mask), 20)
    for a, b in zip(fillers[0].imputer.weights, fillers[1].imputer.weights, strict=True):
        np.testing.assert_allclose(a @ a.T, b @ b.T, rtol=1e-4, atol=1e-6)


def test_what_only_memory_can_do_is_refused(small_store, tmp_path):
    with pytest.raises(CalmrlError, match="batches of mixed patterns"):
        train(config(small_store, memory="stream", batching="pattern"), tmp_path / "r")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_a_store_larger_than_the_memory_it_may_use_trains(tmp_path):
    n, names, dim = 300_000, ("a", "b"), 256
    rng = np.random.default_rng(0)
    write_store(
        tmp_path / "big.zarr", dataset="big", modalities=[ModalitySpec(name, "given", "0" * 16, dim, "float16") for name in names],
        ids=[f"i{j}" for j in range(n)], split=np.where(np.arange(n) % 100 == 0, "validation", "train"),
        group=[f"g{j}" for j in range(n)], labels={},
        features={m: rng.standard_normal((n, dim), dtype=np.float32).astype(np.float16) for m in names},
        offsets={m: np.arange(n + 1) for m in names}, reason=np.zeros((n, 2), dtype=np.uint8), licence="none", attribution="none",
        provenance={},
    )  # fmt: skip
    script = r"""
import re, sys
from pathlib import Path
from calmrl_lab.training.train import train_heads
import calmrl_lab.data.streaming_table, calmrl_lab.data.table, calmrl_lab.training.session, torch
torch.set_num_threads(1)

# Not getrusage: a child begins with the peak of the process that started it.
def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

before = peak()
calmrl_lab.data.streaming_table.BLOCK = calmrl_lab.data.table.BLOCK = calmrl_lab.training.session.STARTING_ITEMS = 8192
train_heads(sys.argv[1], method="pmrl", run=sys.argv[2], epochs=1, dim=16, batch_size=512, memory=sys.argv[3])
print(peak() - before)
"""
    grown = {}
    for memory in ("stream", "table"):
        words = [sys.executable, "-c", script, str(tmp_path / "big.zarr"), str(tmp_path / memory), memory]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        grown[memory] = float(done.stdout.split()[-1])
        assert Run.open(tmp_path / memory).finished()
    # 293 MB as float16; a stream has its buffer and the items that heads start from.
    assert grown["stream"] < 0.6 * grown["table"]
