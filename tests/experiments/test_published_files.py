"""The experiment files that come with the project: every one can be read on each of its data, and says what stands in for what."""

from pathlib import Path

import pytest
import yaml

from calmrl_lab.experiments.loading import read_experiment
from calmrl_lab.experiments.spec import candidates, run_config

FOLDER = Path(__file__).parents[2] / "experiments"
PAPER = sorted(FOLDER.glob("table*.yaml")) + sorted(FOLDER.glob("figure*.yaml"))
EVERY = [
    (path, name) for path in sorted(FOLDER.glob("*.yaml")) for name in yaml.safe_load(path.read_text()).get("data") or [None]
]


@pytest.mark.parametrize(("path", "data"), EVERY, ids=[f"{path.stem}-{data}" for path, data in EVERY])
def test_a_file_makes_sense_on_each_of_its_data(path, data):
    experiment = read_experiment(path, data=data)
    for method in experiment.methods:
        for settings in candidates(method):
            run_config(experiment, method, settings, 0, method.name)


def test_there_is_a_file_for_every_table_and_figure():
    assert [path.stem for path in PAPER] == ["table1", "table2", "table3", "figure3", "figure4", "figure5"]


@pytest.mark.parametrize("path", PAPER, ids=[path.stem for path in PAPER])
def test_a_table_of_the_paper_has_its_data_and_a_stand_in_that_says_so(path):
    assert read_experiment(path).data == "paper"
    assert read_experiment(path).stand_in is None
    assert "stand-in" in read_experiment(path, data="openmoji").stand_in.lower()


def test_table_1_has_all_systems():
    labels = {method.label for method in read_experiment(FOLDER / "table1.yaml").methods}
    assert {"CLIP", "ImageBind", "LanguageBind", "VAST", "GRAM", "TRIANGLE", "PMRL", "CalMRL"} <= labels


def test_the_stand_in_warms_up_on_items_that_training_does_not_see():
    for path in PAPER:
        experiment = read_experiment(path, data="openmoji")
        for method in experiment.methods:
            config = run_config(experiment, method, method.settings, 0, method.name)
            assert config.warm_up_scenario == "share:0.5"
            assert config.scenario.startswith("rest:0.5")
