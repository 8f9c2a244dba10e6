"""Experiments by name, and a first file for a store of one's own."""

import numpy as np
import pytest
import yaml

from calmrl_lab import FeatureStore
from calmrl_lab.errors import CalmrlError
from calmrl_lab.experiments import published
from calmrl_lab.experiments.loading import read_experiment


def store_at(path, gaps, n=80):
    generator = np.random.default_rng(0)
    common = generator.normal(size=(n, 4))
    arrays = {name: common @ generator.normal(size=(4, 6)) + 0.1 * generator.normal(size=(n, 6)) for name in "abc"}
    if gaps:
        arrays["c"][::3] = np.nan
    return FeatureStore.from_arrays(arrays, path=path)


def test_names_are_those_of_the_files():
    assert {"demo", "table1", "table2", "table3", "figure3", "figure4", "figure5"} <= set(published.names())
    described = published.describe()
    assert list(described) == published.names()
    assert all(described.values())


def test_a_file_of_ones_own_goes_before_one_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = published.find("table3")
    assert published.find("table3.yaml") == published.find("experiments/table3.yaml") == packaged
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "table3.yaml").write_text("title: mine\n")
    assert published.find("table3").read_text() == "title: mine\n"
    (tmp_path / "table3").write_text("title: here\n")
    assert published.find("table3").read_text() == "title: here\n"


def test_an_installed_package_has_its_own_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "inside.yaml").write_text("title: inside\n")
    monkeypatch.setattr(published, "_PLACES", (tmp_path / "files", tmp_path / "nowhere"))
    assert published.describe() == {"inside": "inside"}
    monkeypatch.setattr(published, "_PLACES", (tmp_path / "nowhere",))
    assert published.names() == []


@pytest.mark.parametrize("name", ["tabel3", "nowhere.yaml", "else/table3.yaml"])
def test_an_unknown_name_is_one_sentence_with_the_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CalmrlError, match="there is no file") as raised:
        published.find(name)
    assert "table3" in raised.value.hint


@pytest.mark.parametrize("gaps", [False, True])
def test_a_new_file_can_be_run_as_it_is(tmp_path, gaps):
    store = store_at(tmp_path / "s.zarr", gaps)
    file = published.write_first(store, tmp_path / "mine.yaml")
    asked = read_experiment(file)
    assert ("oracle" in [method.name for method in asked.methods]) is not gaps
    assert yaml.safe_load(file.read_text())["common"]["scenario"] == ("full" if gaps else "pairs:0.25")
    with pytest.raises(CalmrlError, match="exists already"):
        published.write_first(store, file)


def test_one_modality_is_nothing_to_align(tmp_path):
    store = FeatureStore.from_arrays({"a": np.eye(3)}, path=tmp_path / "s.zarr")
    with pytest.raises(CalmrlError, match="one modality"):
        published.write_first(store, tmp_path / "mine.yaml")


def test_the_command_writes_one_and_runs_it(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = store_at(tmp_path / "s.zarr", gaps=True)
    code, out, _ = cli("experiment", "new", "--store", store.path, "--out", "mine.yaml")
    assert code == 0
    assert "next: calmrl-lab experiment mine.yaml --dry-run" in out
    code, out, _ = cli("experiment", "mine.yaml", "--dry-run")
    assert code == 0
    assert "15 of 15 runs to make" in " ".join(out.split())
    code, _, err = cli("experiment", "new")
    assert code == 2
    assert "needs a store to start from" in err
    code, out, _ = cli("experiment", "table3", "--store", store.path, "--dry-run", "--data", "openmoji")
    assert code == 2 or "runs to make" in out
