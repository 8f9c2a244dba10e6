"""Curves over missing modalities: the same masks for everybody, nothing leaks to the imputer, gains are differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.missing_curves import aggregation_gain, curve_table, default_scenarios, missing_curves, run_curves
from calmrl_lab.evaluation.retrieval import rank_both
from calmrl_lab.evaluation.run_items import imputer_of, open_run
from calmrl_lab.evaluation.score_rows import hits
from calmrl_lab.imputers.mean import Mean


def rng():
    return np.random.default_rng(0)


def test_nothing_hidden_is_plain_retrieval(invented):
    data = invented()
    frame = missing_curves(data, scenarios=["full"], queries=["a"])
    single = frame[(frame["scorer"] == "cosine:b") & (frame["side"] == "gallery")]
    ranks, _ = rank_both(data.rows[0], data.rows[1], data.owners[0], data.owners[1])
    np.testing.assert_array_equal(single["greater"], ranks.greater)
    assert set(frame["scorer"]) == {"centroid", "anchor", "cosine:b", "cosine:c"}
    assert (frame["candidates"] == 60).all()
    assert set(frame["gallery"]) == {"b+c", "a"}


def test_masks_are_nested_and_the_same_for_every_scorer(invented):
    frame = missing_curves(invented(), queries=["a"])
    shown = frame.groupby(["gallery_scenario", "item"])["pattern"]
    assert (shown.nunique() == 1).all()
    pattern = shown.first()
    for low, high in (("full", "random:0.25"), ("random:0.25", "random:0.5"), ("random:0.5", "random:0.9")):
        for item in ("i0", "i7", "i33"):
            assert set(pattern[high, item].split("+")) <= set(pattern[low, item].split("+"))
    table = curve_table(frame, rng())
    one = table[(table["scorer"] == "centroid") & (table["side"] == "gallery")].set_index("gallery_scenario")
    assert one.loc["full", "recall_at_1"] > one.loc["random:0.9", "recall_at_1"]
    assert one.loc["random:0.9", "shown"] < one.loc["random:0.5", "shown"] < one.loc["full", "shown"] == 2
    assert one.loc["random:0.5", "rate"] == 0.5
    assert (one["low_1"] <= one["recall_at_1"]).all()
    assert (one["recall_at_1"] <= one["high_1"]).all()


def test_every_modality_is_dropped_in_turn():
    assert default_scenarios(["b", "c"])[-2:] == ["drop:b", "drop:c"]
    assert "drop:b" not in default_scenarios(["b"])


class Spy(Mean):
    """Remembers what it was allowed to see."""

    def impute(self, embeddings, mask):
        self.seen = mask.clone()
        return super().impute(embeddings, mask)


def test_the_modality_that_asks_is_hidden_from_the_imputer(invented):
    data = invented()
    spy = Spy().fit(list(data.items.unbind(1)), data.mask)
    missing_curves(data, spy, scenarios=["drop:c"], queries=["b"], scorers=["centroid"])
    assert spy.seen.any(dim=0).tolist() == [True, False, False]


def test_calibrated_rows_fill_only_what_is_hidden(invented):
    data = invented()
    mean = Mean().fit(list(data.items.unbind(1)), data.mask)
    frame = missing_curves(data, mean, scenarios=["full", "drop:c"], queries=["a"])
    full = frame[frame["gallery_scenario"] == "full"]
    plain, filled = (full[full["calibrated"] == flag].reset_index(drop=True) for flag in (False, True))
    np.testing.assert_array_equal(plain["greater"], filled["greater"])
    dropped = frame[(frame["gallery_scenario"] == "drop:c") & (frame["scorer"] == "cosine:c") & (frame["side"] == "gallery")]
    # Without c nobody can be told apart by c; with the mean in its place they are all tied as well.
    assert (dropped["equal"] == 59).all()
    assert dropped.groupby("calibrated")["unserved"].first().to_dict() == {False: 60, True: 0}


def test_an_item_that_lacks_every_modality_is_counted_and_last(invented):
    data = invented()
    mask = data.mask.clone()
    mask[5, 1:] = False
    data = replace(data, mask=mask, items=data.items.masked_fill(~mask.unsqueeze(-1), 0))
    frame = missing_curves(data, scenarios=["full"], queries=["a"], scorers=["centroid"])
    forward = frame[(frame["side"] == "gallery") & (frame["scorer"] == "centroid")].set_index("item")
    assert (forward["unserved"] == 1).all()
    assert (forward.loc["i5", "greater"], forward.loc["i5", "equal"]) == (59, 0)
    backward = frame[(frame["side"] == "query") & (frame["scorer"] == "centroid")].set_index("item")
    assert (backward.loc["i5", "greater"], backward.loc["i5", "equal"], backward.loc["i5", "pattern"]) == (0, 59, "none")


def test_several_rows_of_the_asking_modality_are_several_queries(invented):
    data = invented(20)
    twice = replace(data, rows=(data.rows[0].repeat(2, 1), *data.rows[1:]), owners=(data.owners[0].repeat(2), *data.owners[1:]))
    frame = missing_curves(twice, scenarios=["full"], queries=["a"], scorers=["centroid"])
    assert len(frame[(frame["side"] == "gallery") & (frame["scorer"] == "centroid")]) == 40
    assert (frame.loc[frame["side"] == "query", "positives"] == 2).all()


def test_the_gain_is_the_difference_to_the_best_single(invented):
    frame = missing_curves(invented(200, noise=(0.2, 0.5, 0.5)), scenarios=["full"], queries=["a"], scorers=["centroid"])
    gain = aggregation_gain(frame, rng()).set_index("side").loc["gallery"]
    forward = frame[frame["side"] == "gallery"]
    first = {name: 100 * hits(part, 1).mean() for name, part in forward.groupby("scorer")}
    assert gain["joint"] == pytest.approx(first["centroid"])
    assert gain["single"] == pytest.approx(max(first["cosine:b"], first["cosine:c"]))
    assert gain["gain"] == pytest.approx(gain["joint"] - gain["single"])
    # Two views of equal noise tell more together than either alone.
    assert gain["low"] > 0
    assert gain["p"] < 0.05


def test_what_is_asked_twice_counts_once(invented):
    data = invented(20)
    once = missing_curves(data, scenarios=["full"], queries=["a"], scorers=["centroid"])
    twice = missing_curves(data, scenarios=["full"] * 2, queries=["a"] * 2, scorers=["centroid", "centroid", "cosine:b"])
    assert len(once) == len(twice)


def test_two_modalities_have_no_joint_to_speak_of_and_still_work(invented):
    frame = missing_curves(invented(noise=(0.3, 0.3)), queries=["a"])
    assert (curve_table(frame, rng())["queries"] == 60).all()
    gains = aggregation_gain(frame, rng())
    assert gains.loc[gains["scorer"] == "centroid", "gain"].abs().max() < 1e-9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"queries": ["z"]}, "queries have no modality 'z'"),
        ({"scenarios": ["drop:a"], "queries": ["a"]}, "'drop:a' names 'a', which for queries of 'a' is no part of the items"),
        ({"scenarios": ["drop:a,b,c"]}, "'drop:a,b,c' names 'a', which for queries of 'a' is no part of the items"),
        ({"scenarios": ["drop:z"]}, "unknown modality 'z'"),
        ({"scorers": ["centriod"]}, "did you mean 'centroid'?"),
        ({"scorers": ["imputer-likelihood"]}, "scorer 'imputer-likelihood' needs a fitted PPCA"),
        ({"scorers": ["likelihood-ratio"]}, "needs a model that can compare by similarity 'likelihood-ratio'"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(invented, arguments, said):
    with pytest.raises(CalmrlError, match=said.replace("?", r"\?")):
        missing_curves(invented(), **arguments)


def test_a_gallery_without_the_asking_modality_is_refused(invented):
    data = invented(noise=(0.3, 0.3))
    lost = replace(data, rows=(data.rows[0][:0], data.rows[1]), owners=(data.owners[0][:0], data.owners[1]))
    with pytest.raises(CalmrlError, match="there are no queries of it"):
        missing_curves(lost, queries=["a"])


def test_of_all_modalities_those_that_nothing_can_ask_are_left_out_with_a_note(invented, capsys):
    data = invented()
    frame = missing_curves(data, scenarios=["full", "drop:c"], scorers=["centroid"])
    asked = frame[frame["side"] == "gallery"].groupby("query")["gallery_scenario"].unique().map(set).to_dict()
    assert asked == {"a": {"full", "drop:c"}, "b": {"full", "drop:c"}, "c": {"full"}}
    assert "left out: scenario 'drop:c' names 'c'" in capsys.readouterr().err
    mask = data.mask.clone()
    mask[:, 2] = False
    unseen = replace(data, mask=mask, rows=(*data.rows[:2], data.rows[2][:0]), owners=(*data.owners[:2], data.owners[2][:0]))
    frame = missing_curves(unseen, scenarios=["full", "random:0.5"], scorers=["centroid"])
    assert set(frame.loc[frame["side"] == "gallery", "query"]) == {"a", "b"}
    assert capsys.readouterr().err.count("no item of the gallery has modality 'c'") == 1


def test_a_run_writes_its_curves(trained):
    frame = run_curves(trained, scenarios=["full", "random:0.5"], queries=["caption"], scorers=["anchor", "imputer-likelihood"])
    assert len(trained.read_frame("curves.parquet")) == len(frame)
    assert set(frame.loc[frame["scorer"] == "anchor", "calibrated"]) == {False, True}
    assert frame.loc[frame["scorer"] == "imputer-likelihood", "calibrated"].all()
    assert set(frame["side"]) == {"gallery", "query"}
    _, _, items = open_run(trained)
    assert set(frame["item"]) <= set(items.of("test").ids)


def test_an_imputer_can_be_fitted_after_the_fact(trained):
    opened = run, model, items = open_run(trained)
    assert type(imputer_of(*opened)).name == "ppca"
    mean = imputer_of(run, model, items, "mean")
    assert type(mean).name == "mean"
    test = model.embed(items.of("test"))
    filled = test.filled(mean, torch.zeros(len(test), 5, dtype=torch.bool))
    assert torch.isfinite(filled).all()
    with pytest.raises(CalmrlError, match="no items in split 'tset'"):
        items.of("tset")


def test_of_many_modalities_some_ask_and_some_are_dropped():
    names = [f"m{number}" for number in range(12)]
    assert len(default_scenarios(names)) == 5 + 5
    assert default_scenarios(names)[-1] == "drop:m11"
    assert default_scenarios(names[:4])[5:] == [f"drop:m{number}" for number in range(4)]
