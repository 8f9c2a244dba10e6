"""Requests that cannot work are refused in one sentence before anything runs."""

import pytest
import yaml

from calmrl_lab.errors import CalmrlError
from calmrl_lab.experiments.loading import read_experiment

CLIP = {"objective": "clip", "impute": "none"}


def read(tmp_path, store, settings=CLIP, **changes):
    file = tmp_path / "small.yaml"
    values = {"title": "small", "store": str(store), "seeds": [0], "methods": [{"name": "m", "settings": settings}]}
    file.write_text(yaml.safe_dump({**values, **changes}))
    return read_experiment(file)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": "clip", "impute": "ppkca"}, "method 'm': .*'ppkca'.*did you mean 'ppca'"),
        ({"impute": "ppca", "impute_options": {"latent": 3}}, "method 'm': imputer 'ppca': .*'latent'"),
        ({**CLIP, "imputer_data": "warm-up"}, "method 'm': imputer_data is 'warm-up', and there is no warm-up store"),
        ({**CLIP, "scenarios": {"a.zarr": "full"}}, "method 'm': scenarios: the mix has no store 'a.zarr'"),
        ({**CLIP, "warm_up_scenario": "shear:0.5"}, "method 'm': unknown scenario 'shear:0.5'; did you mean 'share'"),
        ({**CLIP, "scenario": "drop:vidio"}, "method 'm': .*unknown modality 'vidio'"),
        ({"objective": "clop", "impute": "none"}, "method 'm': .*'clop'.*did you mean 'clip'"),
        ({**CLIP, "objective_options": {"temprature": 1}}, "method 'm': objective 'clip': .*temprature"),
        ({"objective": "triangle", "impute": "none", "modalities": ["vision", "audio"]}, "needs three modalities, got 2"),
    ],
)
def test_settings_that_cannot_work(tmp_path, small_store, settings, said):
    with pytest.raises(CalmrlError, match=said):
        read(tmp_path, small_store, settings)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"directions": ["caption:vidion"]}, "directions: store .* has no modality 'vidion'; did you mean 'vision'"),
        ({"probes": {"label": "categry"}}, "probes: store .* has no label 'categry'; did you mean 'category'"),
        ({"split": "tests"}, "has no items in split 'tests'"),
    ],
)
def test_questions_that_the_store_cannot_answer(tmp_path, small_store, changes, said):
    with pytest.raises(CalmrlError, match=said):
        read(tmp_path, small_store, **changes)


def test_a_store_that_is_not_there_yet_leaves_only_what_the_file_says_of_itself(tmp_path):
    assert read(tmp_path, tmp_path / "later.zarr", probes={"label": "class"}, directions=["a:b"]).store.endswith("later.zarr")
    with pytest.raises(CalmrlError, match="direction 'a-b' is not of the form"):
        read(tmp_path, tmp_path / "later.zarr", directions=["a-b"])
    with pytest.raises(CalmrlError, match="imputer 'ppca'"):
        read(tmp_path, tmp_path / "later.zarr", {"impute": "ppca", "impute_options": {"latent": 3}})
