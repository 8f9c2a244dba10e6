"""Several stores at once: every store shows what it has, weights and patterns decide the batches, gradients of dead terms are told."""

import json

import numpy as np
import pytest
import torch

from calmrl_lab.config import TrainConfig
from calmrl_lab.data.table import load_table
from calmrl_lab.data.training_data import open_data
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.evaluate import evaluate
from calmrl_lab.store import FeatureStore, ModalitySpec, write_store
from calmrl_lab.training.train import train

QUICK = {"epochs": 3, "dim": 16, "batch_size": 32, "first_iterations": 5, "refresh_iterations": 2}


def part_of(small_store, path, modalities, items, dims=None):
    """A store of some items and modalities of the small one."""
    store = FeatureStore.open(small_store)
    table = load_table(store, modalities).select(items)
    write_store(
        path, dataset=path.stem, modalities=[ModalitySpec(m, store.spec(m).encoder, store.spec(m).fingerprint, store.dims[m]) for m in modalities],
        ids=table.ids, split=store.split[items], group=table.group, labels={},
        features={m: table.rows[j].numpy() for j, m in enumerate(modalities)},
        offsets={m: table.offsets[j].numpy() for j, m in enumerate(modalities)},
        reason=np.where(table.mask.numpy(), 0, 1).astype(np.uint8), licence="as the store it is from", attribution="OpenMoji", provenance={},
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def two(small_store, tmp_path_factory):
    """MSR-VTT in small: vision and caption; AudioCaps in small: audio and caption."""
    folder = tmp_path_factory.mktemp("stores")
    seen = part_of(small_store, folder / "seen.zarr", ("vision", "caption"), np.arange(0, 200))
    heard = part_of(small_store, folder / "heard.zarr", ("audio", "caption"), np.arange(150, 300))
    return seen, heard


def config(two, **changes):
    values = {
        "store": str(two[0]),
        "mix": {str(two[1]): 1.0},
        "objective": "calmrl",
        "impute": "ppca",
        "impute_options": {"latent_dim": 4},
        **QUICK,
    }
    return TrainConfig(**{**values, **changes})


def test_each_store_shows_what_it_has(two):
    data = open_data(config(two), "cpu")
    assert data.train.modalities == ("vision", "caption", "audio")
    stores = [FeatureStore.open(path) for path in two]
    counts = [int((store.split == "train").sum()) for store in stores]
    assert len(data.train) == sum(counts)
    shown = data.train.mask.tolist()
    assert shown == [[True, True, False]] * counts[0] + [[False, True, True]] * counts[1]
    assert list(data.train.ids[: counts[0]]) == list(stores[0].ids[stores[0].split == "train"])
    assert all(name.startswith("heard/") for name in data.train.ids[counts[0] :])
    assert len(data.validation) == sum(int((store.split == "validation").sum()) for store in stores)


def test_a_weight_is_how_often_a_pass_shows_an_item(two):
    data = open_data(config(two, mix={str(two[1]): 2.5}), "cpu")
    heard = np.array([name.startswith("heard/") for name in data.train.ids])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([data.repeats(generator) for _ in range(40)]).double()
    assert (drawn[:, ~heard] == 1).all()
    assert set(drawn[:, heard].unique().tolist()) == {2.0, 3.0}
    assert float(drawn[:, heard].mean()) == pytest.approx(2.5, abs=0.05)
    shown = torch.cat([b.items for b in data.train.batches(32, generator, repeats=data.repeats(generator))])
    assert len(shown) == int(torch.bincount(shown).sum())
    assert int(torch.bincount(shown)[torch.from_numpy(heard)].min()) >= 2


def test_batches_of_one_pattern(two):
    data = open_data(config(two), "cpu")
    batches = list(data.train.batches(32, torch.Generator().manual_seed(0), by_pattern=True))
    assert all(len(torch.unique(batch.mask, dim=0)) == 1 for batch in batches)
    assert sorted(torch.cat([batch.items for batch in batches]).tolist()) == list(range(len(data.train)))
    kinds = [tuple(batch.mask[0].tolist()) for batch in batches]
    assert kinds != sorted(kinds), "patterns take turns in random order"


@pytest.mark.parametrize("batching", ["mixed", "pattern"])
def test_a_mixed_run_trains_and_is_evaluated_on_each_store(two, tmp_path, batching):
    run = train(config(two, batching=batching, epochs=8), tmp_path / "run")
    assert run.summary["counts"]["observed"]["audio"] > 0
    own = evaluate(run, device="cpu")
    assert set(own.scores["gallery"]) == {"vision", "caption"}
    assert {"query": "audio", "gallery": "caption"} in own.coverage["unserved"]
    other = evaluate(run, store=two[1], device="cpu")
    assert set(other.scores["gallery"]) == {"audio", "caption"}


def test_the_command_takes_stores_with_weights(two, tmp_path, cli):
    words = ("--store", two[0], "--mix", f"{two[1]}:0.5", "--impute", "none", "--objective", "clip", "--run", tmp_path / "r")
    code, _, said = cli("train-heads", *words, "--epochs", "1", "--set", "dim=16")
    assert code == 0, said
    assert "0.5" in (tmp_path / "r" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": "stream"}, "trained on from memory"),
        ({"modalities": ("vision", "smell")}, "no store of the mix has a modality 'smell'"),
        ({"modalities": ("vision", "audio"), "mix": {}}, "has no modality 'audio'"),
    ],
)
def test_mixes_that_make_no_sense(two, tmp_path, changes, said):
    with pytest.raises(CalmrlError, match=said):
        train(config(two, **changes), tmp_path / "r")


def test_items_of_a_group_can_be_spared(small_store, tmp_path):
    values = {"store": str(small_store), "objective": "clip", "impute": "none", "modalities": ("vision", "caption"), **QUICK}
    still = {**values, "learning_rate": 1e-12}
    runs = [train(TrainConfig(**still, exclude_same_group=spare), tmp_path / str(spare)) for spare in (False, True)]
    losses = [json.loads((run.path / "metrics.jsonl").read_text().splitlines()[1])["loss"] for run in runs]
    assert losses[1] < losses[0], "fewer negatives"


def test_a_term_whose_gradient_has_died_is_told(small_store, tmp_path, capfd):
    saturated = {"alignment_temperature": 0.001, "uniformity_temperature": 0.1}
    values = {"store": str(small_store), "objective": "pmrl", "impute": "none", "modalities": ("vision", "caption"), **QUICK}
    run = train(TrainConfig(**values, objective_options=saturated), tmp_path / "r")
    assert run.summary["silent_terms"] == ["alignment"]
    assert "its gradient has died" in capfd.readouterr().err.replace("\n", " ")
    first = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[1])
    assert first["alive_alignment"] < 0.5 < first["alive_loss"]
    lively = train(TrainConfig(**values), tmp_path / "s")
    assert lively.summary["silent_terms"] == []
