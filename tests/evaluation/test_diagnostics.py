"""Diagnostics by hand and against plain loops."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from calmrl_lab.anchors.gate import Gate
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.diagnostics import (
    chance_level,
    chance_warning,
    item_spectrum,
    modality_pairs,
    modality_table,
    reliability,
    shifts_by_gain,
    slices,
    uniformity,
    with_predicted_gain,
)
from calmrl_lab.imputers.mean import Mean


def rng():
    return np.random.default_rng(0)


def ranks(generator, queries=400, candidates=100, positives=1, skill=0.0):
    """Rank rows of a method that finds a share `skill` at once and guesses the rest."""
    draws = np.stack([generator.permutation(candidates)[:positives].min() for _ in range(queries)])
    greater = np.where(generator.random(queries) < skill, 0, draws)
    item = np.arange(queries)
    return pd.DataFrame(
        {"query": "a", "gallery": "b", "scorer": "cosine", "item": item, "group": item, "greater": greater, "equal": 0, "best_positives": 1, "candidates": candidates, "positives": positives}
    )  # fmt: skip


def test_pairs_by_plain_loops(invented):
    data = invented(25)
    mask = torch.rand(25, 3, generator=torch.Generator().manual_seed(0)) < 0.7
    data = replace(data, mask=mask, items=data.items.masked_fill(~mask.unsqueeze(-1), float("nan")))
    row = modality_pairs(data).iloc[1]
    assert (row["modality_a"], row["modality_b"]) == ("a", "c")
    both = [i for i in range(25) if mask[i, 0] and mask[i, 2]]
    a, c = ([data.items[i, j].double() for i in both] for j in (0, 2))
    assert row["items"] == len(both)
    assert row["gap"] == pytest.approx(float((sum(a) / len(a) - sum(c) / len(c)).norm()))
    assert row["alignment"] == pytest.approx(np.mean([float((x - y).square().sum()) for x, y in zip(a, c, strict=True)]))
    assert row["cosine"] == pytest.approx(np.mean([float(x @ y) for x, y in zip(a, c, strict=True)]))
    others = [float(a[i] @ c[j]) for i in range(len(a)) for j in range(len(c)) if i != j]
    assert row["cosine_others"] == pytest.approx(np.mean(others))


def test_modalities_that_never_meet_have_no_numbers(invented):
    data = invented(4)
    mask = data.mask.clone()
    mask[:2, 0], mask[2:, 1] = False, False
    row = modality_pairs(replace(data, mask=mask)).iloc[0]
    assert row["items"] == 0
    assert math.isnan(row["gap"])


def test_uniformity_by_a_plain_loop():
    z = torch.nn.functional.normalize(torch.randn(30, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    plain = [math.exp(-2 * float((z[i] - z[j]).square().sum())) for i in range(30) for j in range(30) if i != j]
    assert uniformity(z) == pytest.approx(math.log(np.mean(plain)), abs=1e-6)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-12)
    assert math.isnan(uniformity(z[:1]))


def test_effective_rank_counts_directions(invented):
    data = invented(4)
    flat = torch.zeros(4, 3, 16)
    flat[:, 0, :2] = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    table = modality_table(replace(data, items=flat)).set_index("modality")
    assert table.loc["a", "effective_rank"] == pytest.approx(2)
    assert table.loc["a", "mean_norm"] == 0
    one = modality_table(replace(data, mask=torch.zeros(4, 3, dtype=torch.bool)))
    assert one["items"].tolist() == [0, 0, 0]


def test_item_spectra(invented):
    data = invented(6)
    mask = data.mask.clone()
    mask[0, 1:] = False
    mask[1] = False
    table = item_spectrum(replace(data, mask=mask))
    assert table["pattern"].tolist() == ["a", "none", *["a+b+c"] * 4]
    assert table.loc[0, ["s1", "share", "eigengap"]].tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert math.isnan(table.loc[1, "share"])
    values = torch.linalg.svdvals(data.items[3].double()).numpy()
    np.testing.assert_allclose(table.loc[3, ["s1", "s2", "s3"]].to_numpy(float), values, rtol=1e-6)


def test_reliability_by_hand():
    frame = pd.DataFrame(
        {"imputer": "ppca", "modality": "a", "predicted_error": [1.0, 2.0, 3.0, 4.0], "squared_error": [2.0, 2.0, 6.0, 10.0]}
    )
    without = frame.assign(imputer="mean", predicted_error=np.nan)
    table = reliability(pd.concat([frame, without]), bins=2)
    assert table["imputer"].unique().tolist() == ["ppca"]
    assert table["predicted"].tolist() == [1.5, 3.5]
    assert table["actual"].tolist() == [2, 8]
    assert table["ratio"].tolist() == pytest.approx([4 / 3, 16 / 7])
    assert table["correlation"][0] == pytest.approx(0.9487, abs=1e-3)
    assert reliability(without).empty


def test_predicted_gains_are_those_a_gate_decides_by(invented):
    data = invented(12)
    imputer = Mean()
    imputer.modalities = data.modalities
    imputer.fit(list(data.items.unbind(1)), data.mask)
    anchors = pd.DataFrame({"item": ["i3", "i5", "i3", "i99"], "pattern": ["a", "b+c", "a+b+c", "a"]})
    found = with_predicted_gain(anchors, data, imputer)["predicted_gain"]
    for row, (place, shown) in enumerate(((3, [1, 0, 0]), (5, [0, 1, 1]), (3, [1, 1, 1]))):
        items, mask = data.items[[place]], torch.tensor([shown], dtype=torch.bool)
        filled = torch.stack(imputer.impute(list(items.unbind(1)), mask), dim=1)
        assert found[row] == pytest.approx(float(Gate.gain(imputer, items, mask, filled)), abs=1e-7)
    assert math.isnan(found[3])
    kept = with_predicted_gain(anchors.assign(predicted_gain=7.0), data, imputer)
    assert (kept["predicted_gain"] == 7).all()


def test_shifts_by_gain_by_hand():
    anchors = pd.DataFrame(
        {
            "predicted_gain": [0.4, np.nan, 0.1, 0.2, 0.3],
            "shift_observed": [1.0, 9.0, 0.2, 0.4, 0.6],
            "shift_calibrated": [0.5, 9.0, 0.3, 0.3, 0.5],
        }
    )
    table = shifts_by_gain(anchors, bins=2)
    assert table["items"].tolist() == [2, 2]
    assert table["predicted_gain"].tolist() == pytest.approx([0.15, 0.35])
    assert table["shift_observed"].tolist() == pytest.approx([0.3, 0.8])
    assert table["closer"].tolist() == [50, 100]
    assert shifts_by_gain(anchors.iloc[1:2]).empty


def test_slices_by_value_number_and_group_size():
    frame = ranks(rng(), skill=0.5)
    frame["pattern"] = np.where(frame["greater"] == 0, "found", "lost")
    by_value = slices(frame, "pattern", rng()).set_index("slice")
    assert by_value.loc["found", "recall"] == 100
    assert by_value.loc["lost", "recall"] == 0
    assert by_value["queries"].sum() == 400
    frame["gain"] = -frame["greater"].astype(float)
    frame.loc[:9, "gain"] = np.nan
    by_number = slices(frame, "gain", rng())
    assert by_number["slice"].iloc[-1] == "no value"
    assert by_number["queries"].sum() == 400
    frame["group"] = np.where(frame["item"] < 100, frame["item"] // 2, frame["item"])
    sizes = slices(frame, "group_size", rng()).set_index("slice")
    assert sizes["queries"].to_dict() == {"1": 300, "2": 100}
    assert sizes["groups"].to_dict() == {"1": 300, "2": 50}
    with pytest.raises(CalmrlError, match="no column 'gian'"):
        slices(frame, "gian", rng())


@pytest.mark.slow
@pytest.mark.parametrize("positives", [1, 5])
def test_a_random_order_is_at_chance_and_a_little_skill_is_not(positives):
    alarms = [chance_level(ranks(np.random.default_rng(s), positives=positives))["at_chance"][0] for s in range(60)]
    assert np.mean(alarms) > 0.9
    z = [chance_level(ranks(np.random.default_rng(s), positives=positives))["z"][0] for s in range(60)]
    assert abs(np.mean(z)) < 0.4
    assert 0.7 < np.std(z) < 1.3
    found = chance_level(ranks(rng(), positives=positives, skill=0.15))
    assert not found["at_chance"][0]


def test_ties_everywhere_are_chance():
    frame = ranks(rng()).assign(greater=0, equal=99)
    level = chance_level(frame)
    assert level["z"][0] == pytest.approx(0)
    assert level["recall_at_1"][0] == pytest.approx(level["chance"][0]) == pytest.approx(1)


def test_the_warning_is_loud_and_names_the_direction():
    good, bad = ranks(rng(), skill=0.5), ranks(rng()).assign(query="c")
    assert chance_warning(good) is None
    said = chance_warning(pd.concat([good, bad]))
    assert said.startswith("AT CHANCE LEVEL: 1 of 2 directions")
    assert "c->b" in said


def test_a_gallery_of_one_cannot_be_told_from_chance():
    level = chance_level(ranks(rng(), queries=3, candidates=1))
    assert level["at_chance"][0]


def test_the_exact_reverse_is_not_called_a_random_order():
    def direction(query, greater):
        n = len(greater)
        about = {
            "query": query,
            "gallery": "b",
            "scorer": "cosine",
            "candidates": n,
            "positives": 1,
            "best_positives": 1,
            "equal": 0,
        }
        return pd.DataFrame({**about, "greater": greater, "group": [str(i) for i in range(n)]})

    reverse = direction("a", np.full(200, 190))
    random = direction("c", np.random.default_rng(0).permutation(200))
    said = chance_warning(pd.concat([reverse, random]))
    assert "BACK TO FRONT: 1 of 2 directions (a->b) is worse than a random order" in said
    assert "AT CHANCE LEVEL: 1 of 2 directions (c->b) is not to be told from a random order" in said
