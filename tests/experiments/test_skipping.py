"""A finished run is skipped only if it is what the experiment asks for now, on stores as they are now, and as the experiment left it."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.experiments.job import Job, perform
from calmrl_lab.experiments.spec import Probes
from calmrl_lab.runtime.locks import claimed
from calmrl_lab.store import ModalitySpec, write_store


def store(path, seed=0):
    random = np.random.default_rng(seed)
    shared = random.standard_normal((60, 5))
    features = {name: (shared @ random.standard_normal((5, 6))).astype(np.float16) for name in ("a", "b")}
    specs = [ModalitySpec(name, "none", f"sha256:{name}", 6) for name in features]
    splits = np.array(["train", "train", "validation", "test"])[np.arange(60) % 4]
    labels = {name: [f"{name}{i % n}" for i in range(60)] for name, n in (("class", 3), ("kind", 2))}
    write_store(
        path, dataset="made", modalities=specs, ids=[f"i{i}" for i in range(60)], split=splits, features=features,
        offsets={name: np.arange(61) for name in features}, labels=labels, licence="CC0", overwrite=True,
    )  # fmt: skip
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that warmed up on another store, with probes."""
    folder = tmp_path_factory.mktemp("skipping")
    config = TrainConfig(
        store=store(folder / "own.zarr"), warm_up=store(folder / "warm.zarr", seed=1), warm_up_epochs=1, epochs=1, dim=4,
        objective="clip", impute="none", batch_size=16,
    )  # fmt: skip
    job = Job(folder / "m-s0", config, "M", "test", (("a", "b"),), Probes(queries=("a",), label="class"))
    assert perform(job) == {}
    assert job.finished()
    return job


def changed(job, **values):
    return Job(**{**{name: getattr(job, name) for name in job.__dataclass_fields__}, **values})


@pytest.mark.parametrize(
    "values",
    [
        {"split": "validation"},
        {"directions": (("b", "a"),)},
        {"directions": ()},
        {"probes": Probes(queries=("a",), label="kind")},
        {"probes": Probes(queries=("b",), label="class")},
        {"probes": None},
    ],
    ids=str,
)
def test_another_question_is_another_run(made, values):
    assert not changed(made, **values).finished()


def test_which_seeds_are_probed_is_no_question_to_a_run(made):
    assert changed(made, probes=made.probes.model_copy(update={"seeds": (0, 1, 2)})).finished()


@pytest.mark.parametrize("name", ["own.zarr", "warm.zarr"])
def test_a_store_that_was_made_anew_is_noticed_by_the_same_process(made, name):
    place = made.path.parent / name
    aside = Path(shutil.move(place, place.with_suffix(".aside")))
    try:
        store(place, seed=5)
        assert not made.finished()
    finally:
        shutil.rmtree(place)
        shutil.move(aside, place)
    assert made.finished()


def test_a_run_that_was_scored_in_another_way_since_is_made_again(made):
    from calmrl_lab.evaluation.evaluate import evaluate

    evaluate(made.path, [("a", "b")], split="validation")
    assert not made.finished()
    evaluate(made.path, [("a", "b")], split="test")
    assert made.finished()


def test_a_run_killed_before_its_end_is_not_finished(made, tmp_path):
    job = changed(made, path=tmp_path / "m-s0")
    shutil.copytree(made.path, job.path)
    assert job.finished()
    for name in ("summary.json", "scores.parquet", "curves.parquet", "classification.parquet", "evaluation.json"):
        kept = (job.path / name).read_bytes()
        (job.path / name).unlink()
        assert not job.finished(), name
        (job.path / name).write_bytes(kept)
    assert job.finished()


def test_two_experiments_do_not_write_into_one_folder(tmp_path):
    with claimed(tmp_path / "x"):
        said = []

        def second():
            try:
                with claimed(tmp_path / "x"):
                    said.append(None)
            except CalmrlError as error:
                said.append(error.message)

        other = threading.Thread(target=second)
        other.start()
        other.join()
    assert said == [f"another process is writing into '{tmp_path / 'x'}'"]
    with claimed(tmp_path / "x"):
        pass


def test_a_second_experiment_is_refused_by_name_before_it_writes(tmp_path, cli):
    """The command itself, while another process (here: the lock it would hold) writes into the folder."""
    store(tmp_path / "s.zarr", seed=0)
    file = tmp_path / "x.yaml"
    values = {"title": "x", "store": str(tmp_path / "s.zarr"), "methods": [{"name": "clip", "method": "clip"}]}
    file.write_text(json.dumps({**values, "common": {"epochs": 0}}))
    with claimed(tmp_path / "runs" / "x"):
        code, _, err = cli("experiment", file, "--runs", tmp_path / "runs")
        assert list((tmp_path / "runs" / "x").iterdir()) == []
    assert code == 2
    assert f"another process is writing into '{tmp_path / 'runs' / 'x'}'" in " ".join(err.split())
