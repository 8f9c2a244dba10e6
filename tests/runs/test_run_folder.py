"""Run folders: nothing of an earlier run stays, one process writes, finished runs are kept, changed files are noticed."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.runs.run import Run
from calmrl_lab.training.train import train, train_heads

SETTINGS = {"objective": "clip", "impute": "none", "epochs": 3, "dim": 16, "checkpoint_every": 1}


def config(store, **values):
    return TrainConfig(store=str(store), **{**SETTINGS, **values})


class Killed(BaseException):
    """A process that ends in the middle."""


def train_until(monkeypatch, config, path, name, **options):
    """Train, and stop as if killed when the file `name` is about to get its place."""
    replace = os.replace

    def killed(source, target):
        if Path(target).name == name:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            train(config, path, **options)


def model_bytes(path):
    return {file.name: file.read_bytes() for file in sorted((path / "model").iterdir())}


def test_a_checkpoint_of_the_run_before_is_not_resumed_as_the_new_one(small_store, tmp_path, monkeypatch):
    train(config(small_store), tmp_path / "run")
    again = config(small_store, seed=5)
    train_until(monkeypatch, again, tmp_path / "run", "state.pt", overwrite=True)
    resumed = train(again, tmp_path / "run", resume=True)
    undisturbed = train(again, tmp_path / "fresh")
    assert resumed.config.seed == 5
    assert model_bytes(resumed.path) == model_bytes(undisturbed.path)


@pytest.mark.slow
def test_nothing_of_an_earlier_run_stays(small_store, tmp_path):
    path = tmp_path / "run"
    train(config(small_store, objective="none", init="ppca", init_options={"latent_dim": 8, "components": 20}), path)
    with Run(path).writing() as old:
        old.write_frame(old.CURVES, pd.DataFrame({"a": [1]}))
    (path / "model" / "latent.safetensors").write_bytes(b"of an older version")
    new = train(config(small_store), path, overwrite=True)
    fresh = train(config(small_store), tmp_path / "fresh")
    assert not new.has(new.CURVES)
    assert {p.relative_to(path) for p in path.rglob("*")} == {p.relative_to(fresh.path) for p in fresh.path.rglob("*")}


def test_a_finished_run_is_replaced_only_when_asked(small_store, tmp_path, cli):
    words = (
        "train-heads",
        "--store",
        small_store,
        "--method",
        "clip",
        "--epochs",
        "1",
        "--set",
        "dim=8",
        "--run",
        tmp_path / "run",
    )
    assert cli(*words)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, _, err = cli(*words, "--seed", "3")
    assert code == 2
    assert "holds a finished run" in err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert "--overwrite" in err
    assert "--overwrite" in cli("train-heads", "--help")[1]
    assert cli(*words, "--seed", "3", "--overwrite")[0] == 0
    assert Run.open(tmp_path / "run").config.seed == 3


def test_what_is_in_the_way_is_said_before_any_work(small_store, tmp_path, monkeypatch):
    run = train(config(small_store), tmp_path / "run")
    monkeypatch.setattr("calmrl_lab.training.train.Session", lambda *_: pytest.fail("work was done first"))
    with pytest.raises(CalmrlError, match="holds a finished run"):
        train(run.config, run.path)
    (tmp_path / "file").touch()
    with pytest.raises(CalmrlError, match="is not a folder"):
        train(run.config, tmp_path / "file")


def test_a_finished_run_is_not_resumed(small_store, tmp_path):
    run = train(config(small_store), tmp_path / "run")
    with pytest.raises(CalmrlError, match="has finished already"):
        train(run.config, run.path, resume=True)


def test_what_no_run_has_written_is_not_removed(small_store, tmp_path):
    run = train(config(small_store), tmp_path / "run")
    (run.path / "thesis.tex").write_text("mine")
    with pytest.raises(CalmrlError, match=r"holds 'thesis\.tex', which belongs to no run"):
        train(config(small_store), run.path, overwrite=True)
    assert (run.path / "thesis.tex").read_text() == "mine"
    assert run.summary["seed"] == 0


def test_a_second_writer_is_refused_by_name(small_store, tmp_path):
    with Run.create(tmp_path / "run", config(small_store)) as run:
        for second in (lambda: train(run.config, run.path), lambda: train(run.config, run.path, resume=True)):
            with pytest.raises(CalmrlError, match=f"another process is writing into '{run.path}'"):
                second()
    assert train(run.config, run.path, resume=True).finished()


def test_a_writer_in_another_process_is_refused_too(small_store, tmp_path):
    code = "import sys; from pathlib import Path; from calmrl_lab.runtime.locks import only_writer\n"
    code += "with only_writer(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    with Run.create(tmp_path / "run", config(small_store)) as run:
        pass
    other = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(CalmrlError, match="another process is writing"):
        train(run.config, run.path)
    other.kill()
    other.communicate()
    assert train(run.config, run.path).finished()


def test_a_checkpoint_of_another_configuration_or_damaged_is_refused(small_store, tmp_path, monkeypatch):
    for name in ("one", "two"):
        train_until(monkeypatch, config(small_store, seed=len(name + name[0])), tmp_path / name, "summary.json")
    one, two = Run.open(tmp_path / "one"), tmp_path / "two" / "state.pt"
    whole = (one.path / "state.pt").read_bytes()
    (tmp_path / "two" / "config.yaml").write_text((tmp_path / "two" / "config.yaml").read_text().replace("dim: 16", "dim: 15"))
    with pytest.raises(CalmrlError, match=r"config\.yaml' is damaged"):
        Run.open(tmp_path / "two")
    (tmp_path / "two" / "environment.json").unlink()
    with pytest.raises(CalmrlError, match="belongs to another configuration"):
        train(Run.open(tmp_path / "two").config, tmp_path / "two", resume=True)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"", b"x", whole[:-1], bytes(flipped)):
        (one.path / "state.pt").write_bytes(damaged)
        with pytest.raises(CalmrlError, match=r"state\.pt' is damaged"):
            train(one.config, one.path, resume=True)
    (one.path / "state.pt").write_bytes(whole)
    assert train(one.config, one.path, resume=True).finished()
    assert two.exists()


def test_a_checkpoint_can_be_read_by_pytorch_alone(small_store, tmp_path):
    run = train(config(small_store, keep_state=True), tmp_path / "run")
    assert torch.load(io.BytesIO((run.path / "state.pt").read_bytes()), weights_only=True)["epoch"] == 3


def test_the_checkpoint_goes_when_the_run_is_finished(small_store, tmp_path, cli):
    settings = ["--method=clip", *(f"--set={key}={value}" for key, value in SETTINGS.items())]
    for name, flags in (("plain", []), ("kept", ["--keep-state"])):
        code, _, err = cli("train-heads", "--store", small_store, "--run", tmp_path / name, *settings, *flags)
        assert code == 0, err
    assert not (tmp_path / "plain" / "state.pt").exists()
    assert (tmp_path / "kept" / "state.pt").exists()
    assert model_bytes(tmp_path / "plain") == model_bytes(tmp_path / "kept")


def test_every_file_that_is_changed_by_a_bit_is_noticed(small_store, tmp_path):
    from calmrl_lab.evaluation.evaluate import evaluate

    path = tmp_path / "run"
    evaluate(train(config(small_store), path))
    for file in sorted(path.rglob("*")):
        if not file.is_file() or file.name in ("log.txt", "state.pt"):
            continue
        kept = file.read_bytes()
        for place in range(3, len(kept), max(1, len(kept) // 7)):
            damaged = bytearray(kept)
            damaged[place] ^= 4
            file.write_bytes(damaged)
            with pytest.raises(CalmrlError):
                _read_everything(path)
        file.unlink()
        with pytest.raises(CalmrlError):
            _read_everything(path)
        file.write_bytes(kept)
    _read_everything(path)


def _read_everything(path):
    run = Run.open(path)
    _ = run.config, run.summary, run.environment, run.metrics, run.evaluation
    run.model()
    for name in ("scores.parquet", *(run.digests(run.EVALUATION) or {})):
        run.read_frame(name)
    for name in run.digests(run.SUMMARY) or {}:
        run.read_bytes(name)


def test_a_run_of_an_older_format_is_refused_in_one_sentence(tmp_path, cli):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text("format: 2\nstore: s\n")
    (tmp_path / "old" / "summary.json").write_text(json.dumps({"seed": 0}))
    code, _, err = cli("evaluate", "--run", tmp_path / "old")
    assert code == 2
    assert "was written in format 2, this version reads format 3" in " ".join(err.split())


def test_a_folder_that_may_not_be_written_is_a_failure_of_the_machine(small_store, tmp_path, monkeypatch):
    run = train(config(small_store), tmp_path / "run")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(WorkFailedError, match="cannot be written"), run.writing():
        pass


def test_a_full_disk_leaves_the_old_run_as_it_was(small_store, tmp_path, monkeypatch):
    run = train(config(small_store), tmp_path / "run")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}

    def full(handle):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkFailedError, match="the disk is full"):
        train(config(small_store, seed=1), run.path, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_ctrl_c_between_two_renames_puts_the_old_run_back(small_store, tmp_path, monkeypatch):
    run = train(config(small_store), tmp_path / "run")
    rename, calls = os.rename, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config(small_store, seed=1), run.path, overwrite=True)
    assert Run.open(run.path).config.seed == 0
    assert os.listdir(tmp_path) == ["run"]


def test_the_folder_that_one_works_in_is_not_replaced(small_store, tmp_path, monkeypatch):
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    with pytest.raises(CalmrlError, match="is the folder you work in"):
        train_heads(small_store, objective="clip", imputer="none", epochs=1, run=tmp_path / "here")


def test_a_run_that_another_process_writes_is_not_evaluated_meanwhile(small_store, tmp_path):
    from calmrl_lab.evaluation.classification import classify_run
    from calmrl_lab.evaluation.evaluate import evaluate
    from calmrl_lab.evaluation.missing_curves import run_curves

    run = train(config(small_store), tmp_path / "run")
    with run.writing():
        for command in (evaluate, run_curves, lambda run: classify_run(run, "group")):
            with pytest.raises(CalmrlError, match="another process is writing into"):
                command(run)
    assert len(evaluate(run).scores)


def test_case_08_is_refused_and_the_old_run_stays(tmp_path, cli, monkeypatch):
    """A run is not replaced without being asked, and resuming a finished one is refused."""
    cases = Path(os.environ.get("CALMRL_TEST_CASES") or Path(__file__).resolve().parents[2].parent / "shared" / "cases")
    if not (cases / "08").is_dir():
        pytest.skip("the cases of the specification are not here")
    monkeypatch.chdir(tmp_path)
    modalities = [word for name in "vt" for word in ("--modality", f"{name}={cases / '08' / name}.npz")]
    assert cli("store", "import", "--out", "s.zarr", *modalities)[0] == 0
    words = ("train-heads", "--store", "s.zarr", "--impute", "ppca", "--set", "impute_options={latent_dim: 8}", "--run", "run")
    assert cli(*words, "--epochs", "2", "--seed", "5")[0] == 0
    before = model_bytes(tmp_path / "run")
    again = (*words, "--epochs", "4", "--seed", "6", "--set", "checkpoint_every=1000", "--set", "patience=900")
    assert cli(*again)[0] == 2
    assert cli("train-heads", "--resume", "run")[0] == 2
    assert model_bytes(tmp_path / "run") == before
    # Replaced when asked, and killed before the first checkpoint: what is resumed is the new run.
    config_of_new = TrainConfig(**{**Run.open("run").config.model_dump(), "seed": 6, "epochs": 4, "checkpoint_every": 1000})
    train_until(monkeypatch, config_of_new, Path("run"), "state.pt", overwrite=True)
    resumed = train(config_of_new, Path("run"), resume=True)
    assert model_bytes(resumed.path) == model_bytes(train(config_of_new, Path("fresh")).path)
