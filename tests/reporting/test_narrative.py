"""The words follow the numbers, whatever their order."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from runs.resealing import reseal
from synthetic_runs import RECIPES, Recipe, with_skills, write_experiment

from calmrl_lab.evaluation.significance import Comparison
from calmrl_lab.reporting.page.narrative import narrate
from calmrl_lab.reporting.results.anchor_shifts import shifts
from calmrl_lab.reporting.results.collect import gather
from calmrl_lab.reporting.results.comparisons import comparisons
from calmrl_lab.reporting.results.imputation_errors import imputations
from calmrl_lab.reporting.results.recalls import recalls


def story(folder):
    gathered = gather(folder)
    found = recalls(gathered)
    return narrate(gathered, found, comparisons(gathered, found), imputations(gathered), shifts(gathered))


def words(tmp_path, recipes, seeds=(0, 1, 2), items=150):
    return story(write_experiment(tmp_path / "x", recipes, seeds=seeds, items=items, modalities=("vision", "audio", "caption")))


def test_calibration_helps_and_clip_is_better_still(tmp_path):
    told = words(tmp_path, RECIPES)
    assert told.headline.startswith("Imputing missing modalities helped (+")
    assert "was better still" in told.headline
    assert "how well the missing embeddings are imputed matters" in told.paragraph
    assert "compared with using them" in told.paragraph
    assert "of that" in told.paragraph
    assert "all differences between neighbours in this order are significant" in told.paragraph
    assert told.warnings == ()


def test_a_method_that_fills_in_nothing_is_not_said_to(tmp_path):
    closed = Recipe("closed", "PPCA heads", "calibrated", "clip", "none", 0.26)
    told = words(tmp_path, [recipe for recipe in RECIPES if recipe.role in ("oracle", "baseline")] + [closed])
    assert told.headline.startswith("PPCA heads helped (+")
    assert "PPCA heads raised mean Recall@1" in told.paragraph
    assert "PPCA heads won back" in told.paragraph
    controls = words(tmp_path / "controls", [recipe for recipe in RECIPES if recipe.name != "calmrl-ppca"] + [closed])
    assert "how well the missing embeddings are imputed matters" not in controls.paragraph
    assert "mput" not in told.paragraph.replace("without imputation", "").replace("imputes nothing", "")


@pytest.mark.slow
def test_calibration_helps_and_beats_clip(tmp_path):
    told = words(tmp_path, with_skills(clip=0.1, calmrl_ppca=0.25))
    assert "helped" in told.headline
    assert "beats plain contrastive training" in told.headline
    assert "CalMRL, PPCA beat plain pairwise" in told.paragraph


def test_calibration_does_harm(tmp_path):
    told = words(tmp_path, with_skills(calmrl_ppca=0.07))
    assert "did harm (−" in told.headline
    assert "lowered mean Recall@1" in told.paragraph
    assert "imputation widened the gap" in told.paragraph
    assert "better imputation did not lead to better retrieval" in told.paragraph
    assert "helped" not in told.headline


def test_no_difference_is_called_no_difference_and_bounded(tmp_path):
    told = words(tmp_path, with_skills(calmrl_ppca=0.14, calmrl_mean=0.14, calmrl_random=0.14, clip=0.14))
    assert "made no significant difference" in told.headline
    assert "is compatible with these data" in told.paragraph or "any effect is smaller than" in told.paragraph
    assert "nothing here shows that the quality of the imputation matters" in told.paragraph
    assert "it is not shown that imputation won back any of that" in told.paragraph
    assert "not differ from it significantly" in told.paragraph


@pytest.mark.slow
def test_the_control_can_win(tmp_path):
    told = words(tmp_path, with_skills(calmrl_mean=0.28))
    assert "worse than CalMRL, mean by" in told.paragraph
    assert "how well the missing embeddings are imputed matters" not in told.paragraph
    assert "Highest mean Recall@1 (without the oracle): CalMRL, mean" in told.paragraph


@pytest.mark.slow
def test_many_calibrated_methods_share_a_sentence(tmp_path):
    more = [
        Recipe(f"calmrl-{n}", f"CalMRL, {n}", "calibrated", "calmrl", n, skill) for n, skill in (("knn", 0.3), ("ridge", 0.02))
    ]
    told = words(tmp_path, [*RECIPES[:4], *more])
    assert re.search(
        r"Compared with the same reference the other calibrated methods were higher: CalMRL, PPCA \(\+\d+\.\d points\); "
        r"lower: CalMRL, ridge \(−\d+\.\d points\)\.",
        told.paragraph,
    )
    assert told.paragraph.count("Imputing missing modalities (") == 1
    assert told.headline.startswith("Imputing missing modalities (CalMRL, knn, the best of 3 calibrated methods) helped (+")


@pytest.mark.slow
def test_a_difference_that_only_the_correction_doubts_is_called_one_with_its_p(tmp_path):
    folder = write_experiment(tmp_path / "x", RECIPES, seeds=(0, 1), items=150, modalities=("vision", "audio", "caption"))
    gathered = gather(folder)
    found = recalls(gathered)
    compared = comparisons(gathered, found)
    main, fair, clip = (part.name for part in (compared.roles.calibrated[0], compared.roles.fair, compared.roles.clip))
    doubtful = Comparison(0.073, 0.030, 0.116, 0.005, 9, 1, 0.07)
    better, worse = doubtful, replace(doubtful, value=-0.073, low=-0.116, high=-0.030)
    told = narrate(
        gathered, found, replace(compared, pairs={**compared.pairs, (main, fair): better, (main, clip): worse}), None, None
    )
    assert "helped (+7.3 points of Recall@1, p = .070 after correction)" in told.headline
    assert "was better still (by 7.3 points, p = .070 after correction)" in told.headline
    assert "by 7.3 points [3.0, 11.6], p = .070 after correction, compared with" in told.paragraph


@pytest.mark.slow
def test_no_gap_to_close(tmp_path):
    assert "it is not shown that there is a gap to close" in words(tmp_path, with_skills(oracle=0.14)).paragraph


@pytest.mark.slow
def test_more_than_the_whole_gap(tmp_path):
    assert "won back all of that and more" in words(tmp_path, with_skills(oracle=0.18, calmrl_ppca=0.28)).paragraph


@pytest.mark.slow
def test_incomplete_items_can_do_harm(tmp_path):
    assert "Incomplete items did harm" in words(tmp_path, with_skills(pmrl_complete=0.25)).paragraph


@pytest.mark.slow
def test_fillings_in_another_order(tmp_path):
    bad = Recipe(
        "calmrl-ppca", "CalMRL, PPCA", "calibrated", "calmrl", "ppca", 0.2, error={"ppca": 1.0, "mean": 0.8, "random": 1.6}
    )
    told = words(tmp_path, [*RECIPES[:3], bad, *RECIPES[4:]])
    assert re.search(r"\d \(mean\), [01]\.\d\d \(ppca\) and 1\.\d\d \(random\)", told.paragraph)


@pytest.mark.slow
def test_fillings_that_are_alike_are_not_ordered(tmp_path):
    same = Recipe("calmrl-ppca", "CalMRL, PPCA", "calibrated", "calmrl", "ppca", 0.2, error={"ppca": 0.8, "mean": 0.8})
    told = words(tmp_path, [*RECIPES[:3], same, *RECIPES[4:]])
    assert "the difference between" in told.paragraph
    assert "in this order are significant" not in told.paragraph


@pytest.mark.slow
def test_anchors_can_move_away(tmp_path):
    away = Recipe(
        *[getattr(RECIPES[3], n) for n in ("name", "label", "role", "objective", "impute", "skill")],
        gain=-0.1,
        error={"ppca": 1},
    )
    assert "moved anchors farther" in words(tmp_path, [*RECIPES[:3], away]).paragraph


@pytest.mark.slow
def test_one_seed_is_a_caution(tmp_path):
    told = words(tmp_path, RECIPES, seeds=(0,))
    assert any("Only one seed" in sentence for sentence in told.warnings)
    assert "1 seed and at least" in told.paragraph


@pytest.mark.slow
def test_a_run_at_chance_is_said_loudly(tmp_path):
    folder = write_experiment(tmp_path / "x", RECIPES, seeds=(0, 1), items=60)
    for path in folder.glob("calmrl-ppca-s*/scores.parquet"):
        frame = pd.read_parquet(path)
        frame["greater"] = np.random.default_rng(3).integers(0, 60, len(frame))
        frame.assign(equal=0).to_parquet(path)
        reseal(path.parent)
    told = story(folder)
    assert told.headline.startswith("CalMRL, PPCA is at chance: whether imputing missing modalities helps cannot be judged")
    assert any(sentence.startswith("At chance in Recall@10: CalMRL, PPCA (") for sentence in told.warnings)
    assert "mean Recall@1 by" not in told.paragraph
    assert "PMRL, complete items only) cost" in told.paragraph


@pytest.mark.parametrize("keep", [("pmrl",), ("calmrl-ppca",), ("clip", "calmrl-ppca"), ("oracle", "clip"), ("pmrl", "oracle")])
def test_any_part_of_the_cast_may_be_missing(tmp_path, keep):
    told = words(tmp_path, [recipe for recipe in RECIPES if recipe.name in keep], items=40)
    assert told.headline.endswith(".")
    assert "None" not in told.headline + told.paragraph
    assert "Uncertainty: " in told.paragraph


def test_no_numbers_at_all(tmp_path):
    folder = write_experiment(tmp_path / "x", RECIPES[2:3], seeds=(0,), items=10)
    (folder / "pmrl-s0" / "summary.json").unlink()
    assert story(folder).headline == "No finished run can be compared."
