"""Who is compared with whom: found from what runs were asked, and never an untrained system."""

import pytest
from synthetic_runs import RECIPES, Recipe, write_experiment

from calmrl_lab.reporting.results.collect import gather
from calmrl_lab.reporting.results.comparisons import roles

UNTRAINED = Recipe("untrained", "VAST, untrained", "baseline", "none", "none", 0.1)
CLOSED = Recipe("closed", "closed form", "baseline", "none", "none", 0.2, more={"init": "ppca"})
GRAM = Recipe("gram", "GRAM", "baseline", "gram", "none", 0.12)
PMRL, CALMRL, CLIP = RECIPES[2], RECIPES[3], RECIPES[6]
WARM = {"warm_up": "stores/warm.zarr", "warm_up_epochs": 3}


def warm(recipe, **more):
    return Recipe(**{**recipe.__dict__, "more": {**WARM, **more}})


def parts(tmp_path, *recipes):
    return roles(gather(write_experiment(tmp_path / "x", recipes, seeds=(0,), items=10)))


@pytest.mark.parametrize("untrained", [UNTRAINED, CLOSED])
def test_the_fair_baseline_is_never_an_untrained_system(tmp_path, untrained):
    assert parts(tmp_path, untrained, CALMRL).fair is None


def test_it_is_pmrl_where_there_is_one_and_else_another_system_but_clip(tmp_path):
    assert parts(tmp_path / "a", UNTRAINED, CLIP, GRAM, PMRL, CALMRL).fair.name == "pmrl"
    assert parts(tmp_path / "b", UNTRAINED, CLIP, GRAM, CALMRL).fair.name == "gram"
    assert parts(tmp_path / "c", UNTRAINED, CLIP, CALMRL).fair is None


def test_it_has_the_same_warm_up_and_goes_on_with_the_incomplete_items(tmp_path):
    only_warm = Recipe("warm-only", "PMRL, complete only", "baseline", "pmrl", "none", 0.1, more={**WARM, "epochs": 0})
    found = parts(tmp_path / "a", only_warm, warm(PMRL), warm(CALMRL))
    assert (found.fair.name, found.complete_only.name) == ("pmrl", "warm-only")
    assert parts(tmp_path / "b", only_warm, warm(CALMRL)).fair is None
    # Heads of this one saw no complete items first, so a difference would be the warm-up's.
    assert parts(tmp_path / "c", warm(PMRL, warm_up_epochs=0), warm(CALMRL)).fair is None


def test_systems_that_see_other_items_are_no_baseline(tmp_path):
    oracle, complete = RECIPES[:2]
    found = parts(tmp_path, oracle, complete, CALMRL)
    assert (found.fair, found.complete_only.name, found.oracle.name) == (None, "pmrl-complete", "oracle")
