"""Configuration: strict keys, one-sentence errors, overrides."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from calmrl_lab.config import TrainConfig, build, override, read_yaml
from calmrl_lab.errors import CalmrlError
from calmrl_lab.methods.resolve import request


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(CalmrlError, match=r"x.yaml: learning_rat: unknown key; did you mean 'learning_rate'\?"):
        build(TrainConfig, {"store": "s", "learning_rat": 1}, "x.yaml")


def test_a_wrong_value_says_what_was_got():
    with pytest.raises(CalmrlError, match=r"x.yaml: learning_rate: .*greater than 0.*got -1"):
        build(TrainConfig, {"store": "s", "learning_rate": -1}, "x.yaml")


def test_a_missing_key_is_named():
    with pytest.raises(CalmrlError, match="x.yaml: store: field required"):
        build(TrainConfig, {}, "x.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("0.5", 0.5),
        ("true", True),
        ("null", None),
        ("[a, b]", ["a", "b"]),
        ("clip", "clip"),
        ("a=b", "a=b"),
    ],
)
def test_set_reads_yaml_values(text, value):
    assert override({}, [f"key={text}"]) == {"key": value}


def test_set_reaches_into_groups_and_leaves_the_rest():
    before = {"impute_options": {"latent_dim": 32, "seed": 1}, "epochs": 3}
    after = override(before, ["impute_options.latent_dim=8", "objective_options.alpha=0.2"])
    assert after == {"impute_options": {"latent_dim": 8, "seed": 1}, "epochs": 3, "objective_options": {"alpha": 0.2}}
    assert before["impute_options"]["latent_dim"] == 32


@pytest.mark.parametrize("bad", ["novalue", "=3", "epochs.deep=3"])
def test_a_bad_set_is_one_sentence(bad):
    with pytest.raises(CalmrlError, match="--set"):
        override({"epochs": 3}, [bad])


@given(st.dictionaries(st.sampled_from(["epochs", "batch_size", "seed"]), st.integers(2, 99)))
def test_flags_win_over_the_file_and_set_over_flags(tmp_path_factory, flags):
    file = tmp_path_factory.mktemp("c") / "c.yaml"
    file.write_text(yaml.safe_dump({"store": "s", "epochs": 5, "batch_size": 7}))
    config = request(file, flags, ["seed=4"])
    assert (config.epochs, config.batch_size, config.seed) == (flags.get("epochs", 5), flags.get("batch_size", 7), 4)


@pytest.mark.parametrize(
    ("content", "said"), [("a: [", "line 1.* is not valid YAML"), ("- 1", "holds a list"), (None, "there is no file")]
)
def test_an_unreadable_file_is_one_sentence(tmp_path, content, said):
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(CalmrlError, match=said):
        read_yaml(file)


def test_no_store_named():
    with pytest.raises(CalmrlError, match="no feature store"):
        request(None, {}, [])


def test_without_a_method_the_recommended_one_is_trained_and_any_word_on_it_is_obeyed(small_store, capfd):
    from calmrl_lab.config import TrainConfig
    from calmrl_lab.methods.resolve import RECOMMENDED, request

    asked = request(None, {"store": str(small_store), "scenario": "pairs:0.25"}, ["epochs=3"])
    assert (asked.objective, asked.init, asked.similarity, asked.impute, asked.epochs) == ("clip", "ppca", "sum", "none", 3)
    assert asked.learning_rate == RECOMMENDED["learning_rate"]
    assert "no method was named" in capfd.readouterr().err
    assert request(None, {"store": str(small_store)}, ["dim=5"]).init_options == {"kernel": "heads", "latent_dim": 5}
    capfd.readouterr()
    for words in (["impute=ppca"], ["objective=calmrl"], ["init=random"], ["impute_options.latent_dim=4"]):
        config = request(None, {"store": str(small_store)}, words)
        assert (config.objective, config.learning_rate) == ("calmrl", TrainConfig(store="x").learning_rate)
    assert capfd.readouterr().err == ""


def test_a_store_with_projection_weights_of_its_own_starts_from_them(small_store, tmp_path):
    import numpy as np

    from calmrl_lab.methods.resolve import request
    from calmrl_lab.store import FeatureStore, write_store

    store = FeatureStore.open(small_store)
    write_store(
        tmp_path / "s.zarr", dataset="d", modalities=list(store.specs), ids=store.ids, split=store.split, group=store.group, labels={},
        features={m: store.features(m) for m in store.modalities}, offsets={m: store.offsets(m) for m in store.modalities},
        reason=store.reason, licence="", attribution="", provenance={}, heads={"contra_head_v": np.zeros((4, 1280), np.float32)},
    )  # fmt: skip
    assert request(None, {"store": str(tmp_path / "s.zarr")}, []).objective == "calmrl"
