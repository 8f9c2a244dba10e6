"""Methods: every file is whole, one set of defaults serves command line and Python, single settings change nothing else."""

import json

import numpy as np
import pytest
import yaml

from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.methods import describe, load, names
from calmrl_lab.methods.resolve import default_run_path, in_words, label, request, resolve
from calmrl_lab.objectives import objectives
from calmrl_lab.runs.run import Run
from calmrl_lab.store import FeatureStore, write_store
from calmrl_lab.training.train import train_heads

QUICK = {"modalities": ["vision", "caption"], "dim": 16, "epochs": 1, "batch_size": 64}


def settings(config):
    return config.model_dump(mode="json", exclude={"method", "changed"})


@pytest.mark.parametrize("name", names())
def test_every_method_file_is_whole(name):
    method = load(name)
    assert method.description.endswith(".")
    assert method.source
    config = resolve({"store": "s.zarr", "method": name}, "test")
    assert (config.method, config.changed) == (name, ())
    assert label(config) == name
    assert in_words(config) == f"method {name}, as it is"


def test_every_objective_has_a_method():
    assert set(objectives) <= {load(name).settings["objective"] for name in names()}


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(CalmrlError, match="unknown method 'clib'; did you mean 'clip'"):
        load("clib")


def test_without_a_method_it_is_the_recommended_one_and_with_an_imputer_the_papers():
    plain = resolve({"store": "s.zarr"}, "test")
    assert settings(plain) == settings(resolve({"store": "s.zarr", "method": "recommended"}, "test"))
    paper = resolve({"store": "s.zarr", "impute": "ppca"}, "test")
    assert settings(paper) == settings(resolve({"store": "s.zarr", "method": "calmrl"}, "test"))
    assert (paper.method, paper.changed) == ("calmrl", ())
    other = resolve({"store": "s.zarr", "impute": "ridge"}, "test")
    assert (other.method, other.changed) == ("calmrl", ("impute",))


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", 3), ("learning_rate", 0.01), ("batch_size", 17), ("head", "mlp"), ("risk_control", True), ("patience", 3)],
)
def test_a_single_setting_changes_itself_and_nothing_else(key, value):
    before, after = (settings(resolve({"store": "s.zarr", **more}, "test")) for more in ({}, {key: value}))
    assert after == {**before, key: value}
    assert resolve({"store": "s.zarr", key: value}, "test").changed == (key,)


def test_options_go_with_their_plug_in():
    replaced = resolve({"store": "s.zarr", "objective": "pmrl"}, "test")
    assert (replaced.method, replaced.objective_options, replaced.init) == ("recommended", {}, "ppca")
    assert replaced.changed == ("objective",)
    assert label(replaced) == "recommended (objective pmrl)"
    more = resolve({"store": "s.zarr", "init_options": {"components": 50}}, "test")
    assert more.init_options == {"kernel": "heads", "components": 50}


def test_the_name_of_a_run_has_the_name_of_its_warm_up_store_without_folders():
    config = resolve({"store": "s.zarr", "method": "calmrl-released", "warm_up": "/data/of/mine/first.zarr"}, "test")
    assert label(config) == "calmrl-released (warm_up first.zarr)"


def test_the_dimension_is_the_latent_one_where_heads_start_from_ppca():
    assert resolve({"store": "s.zarr", "dim": 5}, "test").init_options == {"kernel": "heads", "latent_dim": 5}
    assert resolve({"store": "s.zarr", "dim": 5, "init_options": {"latent_dim": 4}}, "test").init_options["latent_dim"] == 4
    assert resolve({"store": "s.zarr", "dim": 5, "method": "clip"}, "test").init_options == {}


@pytest.mark.parametrize("method", [None, "clip", "calmrl"])
def test_python_and_the_command_line_train_the_same(cli, small_store, tmp_path, method):
    options = {"latent_dim": 16, "components": 40, "whitening": 0.5, "noise_scale": 4.0, "iterations": 2}
    quick = {**QUICK, **({"init_options": options} if method is None else {})}
    words = [word for key, value in quick.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    named = ["--method", method] if method else []
    code, _, said = cli(
        "train-heads", "--store", small_store, "--scenario", "pairs:0.5", *named, *words, "--run", tmp_path / "a"
    )
    assert code == 0, said
    assert f"method {method or 'recommended'}, changed: " in said.replace("\n", " ")
    python = train_heads(small_store, *([method] if method else []), scenario="pairs:0.5", run=tmp_path / "b", **quick)
    command = Run.open(tmp_path / "a")
    assert command.config == python.config
    first, second = (run.read_tensors("model/model.safetensors")[0] for run in (command, python))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_an_imputer_object_is_the_setting_impute(small_store):
    with pytest.raises(CalmrlError, match="imputer and impute are one setting"):
        train_heads(small_store, imputer=PPCA(latent_dim=3), impute="ppca")


def test_default_names_differ_where_settings_differ():
    def path(**values):
        return default_run_path(resolve({"store": "stores/a.zarr", **values}, "test")).name

    assert path() == "a-recommended-full-s0"
    assert path(scenario="pairs:0.25", seed=3, impute="ppca") == "a-calmrl-pairs_0.25-s3"
    different = [
        {},
        {"epochs": 2},
        {"epochs": 3},
        {"head": "mlp"},
        {"modalities": ["x", "y"]},
        {"store": "b.zarr"},
        {"split_seed": 0},
    ]
    assert len({path(**values) for values in different}) == len(different)


def test_a_method_of_ones_own_is_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("describe: CLIP, slowly.\nsource: nowhere\nobjective: clip\nlearning_rate: 0.0001\n")
    config = resolve({"store": "s.zarr", "method": str(file), "epochs": 3}, "test")
    assert (config.method, config.learning_rate, config.changed) == ("mine", 0.0001, ("epochs",))
    file.write_text("objective: clip\n")
    with pytest.raises(CalmrlError, match="has no 'describe'"):
        load(str(file))
    file.write_text("describe: a.\nsource: b\nobjectiv: clip\n")
    with pytest.raises(CalmrlError, match="objectiv: unknown key; did you mean 'objective'"):
        resolve({"store": "s.zarr", "method": str(file)}, "test")
    (tmp_path / "clip.yaml").write_text("describe: a.\nsource: b\nobjective: clip\n")
    with pytest.raises(CalmrlError, match="is called like the method 'clip' of this package"):
        load(str(tmp_path / "clip.yaml"))


def test_a_file_of_settings_may_name_its_method(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"store": "s", "method": "pmrl", "epochs": 5}))
    config = request(file, {"seed": 2}, [])
    assert (config.method, config.objective, config.epochs, config.seed) == ("pmrl", "pmrl", 5, 2)


def test_a_run_put_together_by_hand_says_so():
    config = TrainConfig(store="s", objective="clip", impute="none")
    assert in_words(config).startswith("no method")
    assert label(config) == "clip"


def test_list_prints_methods_and_everything(cli):
    code, out, _ = cli("list", "methods", "--json")
    assert code == 0
    assert json.loads(out) == describe()
    assert "arXiv 2511.12034" in json.loads(out)["calmrl"]
    code, out, _ = cli("list", "--json")
    assert code == 0
    assert {"methods", "objectives", "imputers", "scorers", "encoders", "datasets", "experiments"} == set(json.loads(out))


def test_a_store_with_projection_weights_of_its_own_starts_from_them(small_store, tmp_path):
    store = FeatureStore.open(small_store)
    write_store(
        tmp_path / "s.zarr", dataset="d", modalities=list(store.specs), ids=store.ids, split=store.split, group=store.group, labels={},
        features={m: store.features(m) for m in store.modalities}, offsets={m: store.offsets(m) for m in store.modalities},
        reason=store.reason, licence="", attribution="", provenance={}, heads={"contra_head_v": np.zeros((4, 1280), np.float32)},
    )  # fmt: skip
    assert resolve({"store": str(tmp_path / "s.zarr")}, "test").method == "calmrl"
    assert resolve({"store": str(tmp_path / "s.zarr"), "method": "recommended"}, "test").method == "recommended"
