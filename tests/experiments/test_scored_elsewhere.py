"""Experiments whose runs are scored on a store that they were not trained on, and the paper's sets that are scored so."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from calmrl_lab.errors import CalmrlError
from calmrl_lab.experiments.job import perform
from calmrl_lab.experiments.loading import read_experiment
from calmrl_lab.experiments.required_stores import absent_stores
from calmrl_lab.experiments.runner import final
from calmrl_lab.store import FeatureStore
from calmrl_lab.store.schema import ModalitySpec
from calmrl_lab.store.writer import write_store

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def class_names(tmp_path, small_store):
    """A store of pictures and names of classes, test items only: every item of a class has the name as caption."""
    dims = FeatureStore.open(small_store).dims
    draw, kinds = np.random.default_rng(0), np.arange(30) % 3
    features = {
        "vision": draw.normal(size=(30, dims["vision"])).astype(np.float16),
        "caption": draw.normal(size=(3, dims["caption"])).astype(np.float16)[kinds],
    }
    path = tmp_path / "classes.zarr"
    write_store(
        path, dataset="class-folder", modalities=[ModalitySpec(name, f"made/{name}", f"sha256:{name}", dims[name]) for name in features],
        ids=[f"i{n}" for n in range(30)], split=np.array(["test"] * 30), features=features,
        offsets=dict.fromkeys(features, np.arange(31)), labels={"class": np.array([f"class {kind}" for kind in kinds])}, licence="CC0",
    )  # fmt: skip
    return path


def written(tmp_path, small_store, class_names, **probes):
    values = {
        "title": "t", "store": str(small_store), "score_on": str(class_names), "seeds": [0], "directions": ["caption:vision", "vision:caption"],
        "common": {"modalities": ["vision", "audio", "caption"], "dim": 8, "epochs": 1}, "methods": [{"name": "clip", "method": "clip"}],
        "probes": {"seeds": [0], "queries": [], "label": "class", "kinds": ["zero-shot"], **probes},
    }  # fmt: skip
    path = tmp_path / "elsewhere.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_runs_are_scored_and_classified_on_another_store(tmp_path, small_store, class_names):
    experiment = read_experiment(written(tmp_path, small_store, class_names))
    method = experiment.methods[0]
    from calmrl_lab.experiments.spec import run_config

    job = final(experiment, tmp_path / "runs", method, run_config(experiment, method, {**method.settings}, 0, "test"))
    assert perform(job) == {}
    assert job.finished()
    scores = pd.read_parquet(job.path / "scores.parquet")
    assert set(scores["item"]) <= {f"i{n}" for n in range(30)}
    classified = pd.read_parquet(job.path / "classification.parquet")
    assert set(classified["kind"]) == {"zero-shot"}
    assert set(classified["label"]) == {"class 0", "class 1", "class 2"}


def test_what_needs_the_store_of_training_is_refused(tmp_path, small_store, class_names):
    with pytest.raises(CalmrlError, match="curves of missing modalities are of the store that runs are trained on"):
        read_experiment(written(tmp_path, small_store, class_names, queries=["caption"]))
    with pytest.raises(CalmrlError, match=f"store '{class_names}' has no label 'kind'"):
        read_experiment(written(tmp_path, small_store, class_names, label="kind"))


@pytest.mark.parametrize(
    ("file", "sets"),
    [("table1", ["didemo", "activitynet", "vatex", "clotho"]), ("table2", ["imagenet", "caltech101", "esc50"])],
)
def test_the_sets_of_the_paper_that_nothing_is_trained_on(file, sets):
    for name in sets:
        experiment = read_experiment(EXPERIMENTS / f"{file}.yaml", data=f"paper-{name}" if file == "table1" else name)
        assert experiment.score_on == f"stores/{name}.zarr"
        assert experiment.score_on in absent_stores(experiment)
        paper = read_experiment(EXPERIMENTS / f"{file}.yaml", data="paper")
        assert experiment.common == paper.common
        assert [method.settings for method in experiment.methods] == [method.settings for method in paper.methods]
