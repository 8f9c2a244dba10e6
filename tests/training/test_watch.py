"""Loggers, callbacks and silence while heads are trained; and what is said of modalities that nothing shows."""

import json

import numpy as np
import pytest

from calmrl_lab import FeatureStore, Run, train_heads
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import Mean
from calmrl_lab.training.train import train
from calmrl_lab.training.watch import log_of


@pytest.fixture
def short(tmp_path):
    """short(**settings) -> a run of two epochs over a tiny store."""
    generator = np.random.default_rng(0)
    common = generator.normal(size=(60, 4))
    arrays = {name: common @ generator.normal(size=(4, 6)) + 0.1 * generator.normal(size=(60, 6)) for name in "abc"}
    store = FeatureStore.from_arrays(arrays, path=tmp_path / "s.zarr")

    def train(**settings):
        return train_heads(store, **{"method": "clip", "epochs": 2, "dim": 4, "run": tmp_path / "run", **settings})

    return train


def test_a_function_is_told_every_epoch(short):
    told = []
    run = short(logger=lambda metrics, step: told.append((step, metrics)))
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in told] == [line["step"] for line in lines]
    for (_, metrics), line in zip(told, lines, strict=True):
        assert metrics["validation_mrr"] == line["validation_mrr"]
        assert "epoch" not in metrics
        assert all(isinstance(value, float) for value in metrics.values())


def test_callbacks_see_the_state_after_each_validation(short):
    seen = []
    run = short(callbacks=[seen.append])
    assert [(found.epoch, found.phase) for found in seen] == [(0, "start"), (1, "train"), (2, "train")]
    assert seen[-1].run == run.path
    assert seen[-1].heads.dim == 4
    assert seen[-1].metrics["loss"] > 0


def test_what_a_callback_raises_ends_the_training_and_it_can_be_resumed(short, tmp_path):
    class Pruned(Exception):
        pass

    def prune(found):
        if found.epoch == 1:
            raise Pruned

    with pytest.raises(Pruned):
        short(callbacks=[prune])
    run = Run.open(tmp_path / "run")
    assert not run.finished()
    assert train(run.config, run.path, resume=True).finished()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"callbacks": print}, "expected a list of functions"),
        ({"callbacks": ["print"]}, "expected a list of functions"),
        ({"imputer": 5}, "imputer is 5, expected the name of one or an imputer"),
        ({"imputer": Mean}, "expected the name of one or an imputer"),
        ({"store": {"a": np.eye(3)}}, "the store is a dict, expected a FeatureStore"),
    ],
)
def test_what_cannot_be_called_or_trained_on_is_refused_before_anything_is_written(tmp_path, given, said):
    with pytest.raises(CalmrlError, match=said):
        train_heads(**{"store": tmp_path / "s.zarr", "run": tmp_path / "run", **given})
    assert not list(tmp_path.iterdir())


def test_progress_is_shown_when_asked_for(short, capfd, monkeypatch, tmp_path):
    short()
    assert capfd.readouterr().err == ""
    monkeypatch.setattr("calmrl_lab.runtime.progress.FIRST", 0.0)
    monkeypatch.setattr("calmrl_lab.runtime.progress.EVERY", 0.0)
    monkeypatch.setattr("calmrl_lab.runtime.progress.LOOK", 0.001)
    short(progress=True, run=tmp_path / "shown", epochs=20)
    assert "training shown" in capfd.readouterr().err


def test_loggers_of_other_packages_by_what_they_can_do():
    class Recorder:
        def __init__(self):
            self.told = []

    class Writer(Recorder):
        def add_scalar(self, name, value, step):
            self.told.append((name, value, step))

    class MLflow(Recorder):
        def log_metrics(self, metrics, step=None):
            self.told += [(name, value, step) for name, value in metrics.items()]

    class WandB(Recorder):
        def log(self, metrics, step=None):
            self.told += [(name, value, step) for name, value in metrics.items()]

    for kind in (Writer, MLflow, WandB):
        logger = kind()
        log_of(logger)({"loss": 0.5, "mrr": 0.25}, 7)
        assert logger.told == [("loss", 0.5, 7), ("mrr", 0.25, 7)]
    with pytest.raises(CalmrlError, match="logger is a int, which cannot be told metrics"):
        log_of(3)


def test_members_of_an_ensemble_are_watched_too(short):
    epochs = []
    short(method="clip", members=[{"epochs": 1}, {"epochs": 2}], callbacks=[lambda found: epochs.append(found.epoch)])
    assert epochs == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("method", ["clip", "pmrl", "gram", "raw"])
def test_a_modality_that_nothing_shows_is_said_for_every_objective(short, method, capfd):
    short(method=method, scenario="drop:c")
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("modality 'c' is never observed in training (0 of") == 1


@pytest.mark.parametrize(
    ("objective", "option"),
    [("pmrl", {"spectrum_of": ["a", "b"]}), ("vast", {"query": "a", "subtasks": ["b"]})],
)
def test_a_modality_that_an_option_leaves_out_is_said(short, objective, option, capfd):
    short(objective=objective, objective_options=option)
    said = " ".join(capfd.readouterr().err.split())
    assert said.count(f"(objective_options.{list(option)[-1]}); no term of alignment takes c") == 1


def test_an_imputer_cannot_invent_what_nothing_shows(short):
    with pytest.raises(CalmrlError, match="'c' is never observed in training .* imputer 'mean' cannot know it"):
        short(method="calmrl", impute="mean", scenario="drop:c")
    with pytest.raises(CalmrlError, match="at least two training items with 'c', there are 0"):
        short(method="closed-form", scenario="drop:c")
