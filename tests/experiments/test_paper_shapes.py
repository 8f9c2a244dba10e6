"""The experiments on the paper's data, run on made-up stores of the same shape: modalities, captions per item, splits, released heads, labels."""

from pathlib import Path

import numpy as np
import pytest

from calmrl_lab.experiments.loading import read_experiment
from calmrl_lab.experiments.runner import run_experiment
from calmrl_lab.store import ModalitySpec, write_store

FOLDER = Path(__file__).parents[2] / "experiments"
DIMS = {"vision": 24, "audio": 16, "caption": 20, "subtitle": 20}
LETTERS = {"vision": "v", "audio": "a", "caption": "t", "subtitle": "s"}


def made_up(folder, name, modalities, items, captions=1, labels=False, named=False):
    """A store whose modalities share a latent vector, a third of whose items have no subtitle, with projection heads.

    `named`: all items are test items, and the caption of an item is the name of its class.
    """
    random = np.random.default_rng(len(name))
    latent = random.standard_normal((items, 6))
    split = np.array(["train", "train", "train", "validation", "test"])[np.arange(items) % 5]
    split = np.array(["test"] * items) if named else split
    features, offsets = {}, {}
    for m in modalities:
        counts = np.full(items, captions if m == "caption" else 1)
        counts[::3] = 0 if m == "subtitle" else counts[::3]
        owner = np.repeat(np.arange(items), counts)
        mixed = latent[owner] @ np.random.default_rng(DIMS[m]).standard_normal((6, DIMS[m]))
        noise = 0.3 * random.standard_normal(mixed.shape)
        features[m] = (mixed[owner % 4] if named and m == "caption" else mixed + noise).astype(np.float16)
        offsets[m] = np.concatenate([[0], np.cumsum(counts)])
    heads = {
        f"contra_head_{LETTERS[m]}": np.random.default_rng(1).standard_normal((12, DIMS[m])).astype(np.float32)
        for m in modalities
    }
    write_store(
        folder / f"{name}.zarr", dataset=name, modalities=[ModalitySpec(m, f"vast/{m}", f"sha256:{m}", DIMS[m]) for m in modalities],
        ids=[f"{name}-{i}" for i in range(items)], split=split, features=features, offsets=offsets, heads=heads,
        labels={"class": [f"class {i % 4}" for i in range(items)]} if labels else None, licence="CC0",
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        made_up(folder / "stores", "vast150k", ["vision", "audio", "caption", "subtitle"], 90)
        made_up(folder / "stores", "msrvtt", ["vision", "audio", "caption", "subtitle"], 60, captions=3)
        made_up(folder / "stores", "audiocaps", ["vision", "audio", "caption"], 60, captions=2)
        made_up(folder / "stores", "vggsound", ["vision", "audio", "caption"], 80, labels=True)
        made_up(folder / "stores", "didemo", ["vision", "audio", "caption"], 40)
        made_up(folder / "stores", "clotho", ["audio", "caption"], 40, captions=5)
        made_up(folder / "stores", "imagenet", ["vision", "caption"], 40, labels=True, named=True)
        made_up(folder / "stores", "esc50", ["audio", "caption"], 40, labels=True, named=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("table1", "paper"),
        ("table1", "paper-audiocaps"),
        ("table1", "paper-didemo"),
        ("table1", "paper-clotho"),
        ("table2", "imagenet"),
        ("table2", "esc50"),
        *((name, "paper") for name in ("table2", "table3", "figure3", "figure4", "figure5")),
    ],
)
def test_an_experiment_of_the_paper_runs_on_stores_of_that_shape(name, data, place, monkeypatch):
    monkeypatch.chdir(place)
    quick = ["seeds=[0]", "common.epochs=1", "common.warm_up_epochs=1"]
    experiment = read_experiment(FOLDER / f"{name}.yaml", quick, data)
    if experiment.probes:
        experiment = experiment.model_copy(update={"probes": experiment.probes.model_copy(update={"seeds": (0,)})})
    short = {"epochs": 1, "warm_up_epochs": 1}
    small = []
    for method in experiment.methods:
        settings = {**method.settings, **{key: value for key, value in short.items() if key in method.settings}}
        if "impute_options" in settings or method.method == "calmrl-released":
            settings["impute_options"] = {"latent_dim": 4}
        small.append(method.model_copy(update={"settings": settings}))
    experiment = experiment.model_copy(update={"methods": tuple(small)})
    record = run_experiment(experiment, Path("runs") / f"{name}-{data}", jobs=2)
    assert record["failed"] == []
    assert record["stand_in"] is None
