"""The cosine of the features as a reference in reports: its column, who is below it, and records that are no such thing."""

import pytest
from synthetic_runs import RECIPES, write_experiment

from calmrl_lab.reporting.content.main_tables import FEATURES, direction_table
from calmrl_lab.reporting.results.collect import gather
from calmrl_lab.reporting.results.feature_reference import below_features, feature_recalls
from calmrl_lab.reporting.results.recalls import recalls
from calmrl_lab.reporting.results.warnings import report_warnings
from calmrl_lab.runs.run import Run


def told(run, rows):
    """Write what evaluate says of the features into a run."""
    frames = {run.SCORES: run.read_frame(run.SCORES)}
    run.write_evaluation(frames, {"features": rows})


def row(recall, difference, low, high, query="caption", gallery="vision"):
    return {
        "query": query,
        "gallery": gallery,
        "feature_recall_at_1": recall,
        "difference": difference,
        "low": low,
        "high": high,
    }


@pytest.fixture
def folder(tmp_path):
    found = write_experiment(tmp_path / "x", RECIPES, seeds=(0, 1, 2), items=40)
    for seed, recall in enumerate((60.0, 61.0, 62.0)):
        lost = row(recall, -20.0 - seed, -25.0, -15.0)
        told(Run(found / f"clip-s{seed}"), [lost, row(30.0, -1.0, -2.0, 2.0 if seed else -0.5, "vision", "caption")])
        told(Run(found / f"pmrl-s{seed}"), [row(recall, 3.0, 1.0, 5.0)])
    return found


def test_the_reference_is_a_column_of_the_table_by_direction(folder):
    gathered = gather(folder)
    found = feature_recalls(gathered)
    assert found == {("caption", "vision"): pytest.approx(0.61), ("vision", "caption"): pytest.approx(0.3)}
    table = direction_table(recalls(gathered), found)
    assert [column.heading for column in table.columns][:2] == ["direction", FEATURES]
    by_direction = {record["direction"]: record[FEATURES] for record in table.records}
    assert by_direction["caption → vision"] == pytest.approx(61.0)
    assert by_direction["audio → vision"] is None


@pytest.mark.slow
def test_who_is_below_the_features_in_most_runs_is_said(folder):
    gathered = gather(folder)
    (lost,) = below_features(gathered)
    assert lost.method.name == "clip"
    assert lost.directions == {("caption", "vision"): pytest.approx(21.0)}
    said = [
        sentence for sentence in report_warnings(gathered, recalls(gathered)) if "Below the cosine of the features" in sentence
    ]
    assert len(said) == 1
    assert f"{lost.method.label} (in caption → vision, by 21.0 points)" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["none", [1, "x"], [{"query": "caption"}], [{**row(1.0, 1.0, 1.0, 1.0), "high": "x"}]])
def test_records_of_another_form_are_left_out(tmp_path, damaged):
    found = write_experiment(tmp_path / "x", RECIPES, seeds=(0,), items=40)
    told(Run(found / "clip-s0"), damaged)
    gathered = gather(found)
    assert not feature_recalls(gathered)
    assert not list(below_features(gathered))
    assert direction_table(recalls(gathered), {}).columns[1].heading != FEATURES
