"""Recalls from ranks, by hand."""

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import RECIPES, scores, with_skills, write_experiment

from calmrl_lab.reporting.results.collect import gather
from calmrl_lab.reporting.results.recalls import recalls
from calmrl_lab.runs.run import Run


def _rewrite(folder, change):
    for path in folder.glob("*/scores.parquet"):
        change(path)


def test_recall_chance_and_median_by_hand(tmp_path):
    folder = write_experiment(tmp_path / "x", RECIPES[2:3], seeds=(0, 1), items=4)
    base = {
        "query": "a",
        "gallery": "b",
        "scorer": "cosine",
        "gallery_scenario": "full",
        "pattern": "a+b",
        "candidates": 4,
        "positives": 1,
    }
    for seed, greater in ((0, [0, 0, 1, 3]), (1, [0, 2, 1, 3])):
        rows = [
            {**base, "item": str(i), "group": str(i), "greater": g, "equal": 0, "best_positives": 1}
            for i, g in enumerate(greater)
        ]
        Run(folder / f"pmrl-s{seed}").write_frame("scores.parquet", pd.DataFrame(rows))
    found = recalls(gather(folder))["pmrl"].directions["a", "b"]
    assert found.recalls[1].value == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert found.recalls[5].value == pytest.approx(1.0)
    assert found.chance[1] == pytest.approx(1 / 4)
    assert found.median_rank.value == 2.0  # of 1 1 2 4 1 3 2 4
    assert 1 <= found.median_rank.low <= 2 <= found.median_rank.high <= 4
    assert (found.queries, found.gallery) == (4, 4)


def test_only_the_plain_gallery_and_the_first_scorer_count(tmp_path):
    folder = write_experiment(tmp_path / "x", RECIPES[2:3], seeds=(0,), items=20)

    def add(path):
        frame = pd.read_parquet(path)
        hidden = frame.assign(gallery_scenario="drop:audio", greater=19)
        other = frame.assign(scorer="volume", greater=19)
        Run(path.parent).write_frame(path.name, pd.concat([frame, hidden, other]))

    before = recalls(gather(folder))["pmrl"].means[1].value
    _rewrite(folder, add)
    assert recalls(gather(folder))["pmrl"].means[1].value == pytest.approx(before)


def test_means_are_over_the_directions_that_all_methods_have(tmp_path):
    folder = write_experiment(tmp_path / "x", RECIPES[2:4], seeds=(0,), items=30)
    path = folder / "pmrl-s0" / "scores.parquet"
    frame = pd.read_parquet(path)
    Run(path.parent).write_frame(path.name, frame[(frame["query"] != "audio") & (frame["gallery"] != "audio")])
    found = recalls(gather(folder))
    assert len(found.directions) == 6
    assert len(found.all_directions) == 12
    assert ("audio", "vision") not in found["pmrl"].directions


def test_methods_without_a_common_seed_are_not_compared(tmp_path):
    folder = write_experiment(tmp_path / "x", RECIPES[2:3], seeds=(0,), items=20, record=False)
    write_experiment(folder, RECIPES[3:4], seeds=(1,), items=20, record=False)
    assert recalls(gather(folder)).compare("pmrl", "calmrl-ppca") is None


@pytest.mark.slow
def test_a_method_at_chance_is_found(tmp_path):
    folder = write_experiment(tmp_path / "x", with_skills(clip=0.2)[2:], seeds=(0, 1), items=60)
    for seed in (0, 1):
        path = folder / f"clip-s{seed}" / "scores.parquet"
        frame = pd.read_parquet(path)
        frame["greater"] = np.random.default_rng(seed).integers(0, 60, len(frame))
        Run(path.parent).write_frame(path.name, frame.assign(equal=0))
    found = recalls(gather(folder))
    assert found["clip"].at_chance
    assert not found["pmrl"].at_chance


def test_the_invented_scores_are_valid_ranks():
    frame = scores(RECIPES[0], 0, 50, ("a", "b"))
    assert ((frame["greater"] >= 0) & (frame["greater"] + frame["equal"] <= 50)).all()
