"""Configuration: strict keys, one-sentence errors, overrides."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from calmrl_lab.config import TrainConfig, build, override, read_yaml
from calmrl_lab.errors import CalmrlError
from calmrl_lab.methods.resolve import request
from calmrl_lab.model.closed_form import StartOptions


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(CalmrlError, match=r"x.yaml: learning_rat: unknown key; did you mean 'learning_rate'\?"):
        build(TrainConfig, {"store": "s", "learning_rat": 1}, "x.yaml")


def test_a_wrong_value_says_what_was_got():
    with pytest.raises(CalmrlError, match=r"x.yaml: learning_rate: .*greater than 0.*got -1"):
        build(TrainConfig, {"store": "s", "learning_rate": -1}, "x.yaml")


NUMBERS = {
    name: field.annotation
    for name, field in TrainConfig.model_fields.items()
    if field.annotation in (int, float, int | None, float | None)
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [True, False])
def test_true_and_false_are_no_numbers(name, value):
    with pytest.raises(CalmrlError, match=f"x.yaml: {name}: expected a number, not true or false"):
        build(TrainConfig, {"store": "s", "objective": "clip", name: value}, "x.yaml")


def test_the_key_of_an_error_has_no_names_of_types():
    with pytest.raises(CalmrlError, match="^init_options: noise_scale: input should be greater than 0"):
        build(StartOptions, {"noise_scale": -1}, "init_options")
    with pytest.raises(CalmrlError, match="^x.yaml: mix.s: input should be greater than 0"):
        build(TrainConfig, {"store": "s", "objective": "clip", "mix": {"s": -1}}, "x.yaml")


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


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 100_000, "a: " + "[" * 40 + "]" * 40, "a: &x [*x]", "\n".join(["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]" for i in range(1, 12))])],
    ids=["endless", "deep", "circle", "references"],
)  # fmt: skip
def test_yaml_of_absurd_depth_or_size_is_one_sentence(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(CalmrlError, match="is not valid YAML: it"):
        read_yaml(tmp_path / "x.yaml")
    with pytest.raises(CalmrlError, match="the value is not valid YAML"):
        override({}, [f"a={text[3:]}"])


def test_a_date_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 2020-13-40")
    with pytest.raises(CalmrlError, match="is not valid YAML"):
        read_yaml(tmp_path / "x.yaml")
