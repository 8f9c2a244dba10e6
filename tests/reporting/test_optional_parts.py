"""Classification and missing-modality curves: shown where runs have them, by hand where it matters."""

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import RECIPES, write_experiment

from calmrl_lab.reporting.content.accuracies import accuracy_table, classifications
from calmrl_lab.reporting.content.missing_modalities import curve_table, gain_table, robustness
from calmrl_lab.reporting.output.palette import inks
from calmrl_lab.reporting.results.collect import gather
from calmrl_lab.runs.run import Run


@pytest.fixture(scope="module")
def robust(experiment):
    return robustness(gather(experiment))


def test_accuracy_by_hand(tmp_path):
    folder = write_experiment(tmp_path / "x", RECIPES[2:3], seeds=(0,), items=10)
    frame = pd.DataFrame(
        {
            "kind": "knn", "modality": "joint", "calibrated": False, "item": list("abcd"), "group": list("abcd"),
            "label": ["cat", "cat", "cat", "dog"], "predicted": ["cat", "cat", "dog", "dog"], "correct": [True, True, False, True],
            "correct_at_5": np.nan,
        }
    )  # fmt: skip
    Run(folder / "pmrl-s0").write_frame("classification.parquet", frame)
    found = classifications(gather(folder))
    (row,) = found.rows
    assert row.top.value == pytest.approx(3 / 4)
    assert row.macro.value == pytest.approx((2 / 3 + 1) / 2)
    assert row.macro.low <= row.macro.value <= row.macro.high
    assert row.at_5 is None
    assert (found.largest, found.classes) == (3 / 4, 2)


def test_filled_gaps_are_a_row_of_their_own(experiment):
    gathered = gather(experiment)
    table = accuracy_table(classifications(gathered), inks(gathered.methods))
    labels = [row[0].text for row in table.rows]
    assert labels[:2] == ["PMRL, nothing hidden (oracle)", "PMRL, nothing hidden (oracle), gaps filled"]
    assert [column.heading for column in table.columns] == ["method", "zero-shot %", "knn %", "linear %"]
    assert "gets 56.7 %" in table.notes[1]  # 68 of 120 items are of the last class


def test_recall_falls_along_the_rates_and_less_with_gaps_filled(robust):
    chosen = [p for p in robust.points if p.method.name == "clip" and p.side == "gallery"]
    plain = {p.scenario: p.recall.value for p in chosen if not p.calibrated}
    filled = {p.scenario: p.recall.value for p in chosen if p.calibrated}
    assert plain["full"] > plain["random:0.25"] > plain["random:0.5"] > plain["random:0.9"]
    assert filled["random:0.9"] > plain["random:0.9"]
    assert {p.rate for p in chosen} == {0.0, 0.25, 0.5, 0.9, None}


def test_the_gain_of_joining_is_against_the_best_single_modality(robust):
    assert robust.gains
    for gain in robust.gains:
        assert gain.difference.value == pytest.approx(gain.joint.value - gain.single.value, abs=1e-9)
        assert gain.joint.low <= gain.joint.value <= gain.joint.high
        assert gain.difference.corrected >= gain.difference.p
    assert not any(p.scorer.startswith("cosine:") for p in robust.points)


def test_what_imputing_does_not_change_is_no_second_row(robust):
    for lines in (robust.points, robust.gains):
        seen = [(line.method.name, line.side, line.scorer, getattr(line, "scenario", ""), line.calibrated) for line in lines]
        assert len(seen) == len(set(seen))
    gains = {(g.method.name, g.side, g.scorer, g.calibrated): g for g in robust.gains}
    for (name, side, scorer, calibrated), gain in gains.items():
        if calibrated:
            plain = gains.get((name, side, scorer, False))
            assert plain is None or (plain.joint, plain.single) != (gain.joint, gain.single)


def test_scenarios_are_in_order_of_what_they_hide(experiment, robust):
    colours = inks(gather(experiment).methods)
    table = curve_table(robust, colours)
    assert [column.heading for column in table.columns[3:]] == [
        "full",
        "random:0.25",
        "random:0.5",
        "random:0.9",
        "drop:vision",
    ]
    assert gain_table(robust, colours).rows


def test_both_are_on_the_page(report):
    html = report.page.read_text(encoding="utf-8")
    for part in ("table-classification", "table-missing_curves", "table-aggregation_gain", "missing_curves"):
        assert f'id="{part}"' in html
    assert "Published, Table 2" in html


def test_runs_without_them_have_none(tmp_path):
    gathered = gather(write_experiment(tmp_path / "x", RECIPES[2:3], seeds=(0,), items=10))
    assert classifications(gathered) is None
    assert robustness(gathered) is None


def test_a_table_without_rows_is_the_same_as_none(tmp_path):
    folder = write_experiment(tmp_path / "x", RECIPES[3:4], seeds=(0,), items=10)
    Run(folder / "calmrl-ppca-s0").write_frame("anchors.parquet", pd.DataFrame())
    gathered = gather(folder)
    assert gathered.problems == ()
    assert "anchors" not in gathered.methods[0].runs[0].frames
