"""The plug-ins of docs/adding: found without an edit of the package, and in what they produced."""

import json

import pytest
from docs.pages import ROOT, blocks, is_run, words_of

PAGES = {
    "objective": ("objectives", "huddle"),
    "imputer": ("imputers", "median"),
    "dataset": ("datasets", "rings"),
    "encoder": ("encoders", "triples"),
}


@pytest.mark.parametrize("part", PAGES)
def test_the_plug_in_of_the_page_is_listed_with_its_first_line(part, room, cli):
    kind, name = PAGES[part]
    folder = room(ROOT / "docs" / "adding" / f"{part}.md")
    code, out, err = cli("list", kind, "--json")
    assert code == 0, err
    line = json.loads(out)[name]
    assert "failed to load" not in line
    assert any(line in file.read_text() for file in folder.glob("*.py"))


@pytest.mark.parametrize("part", PAGES)
def test_the_page_goes_from_the_list_to_the_report(part):
    """What the page shows is the whole way; test_commands runs it."""
    commands = [words_of(c)[0] for b in blocks(ROOT / "docs" / "adding" / f"{part}.md") if is_run(b) for c, _ in b.commands()]
    assert commands[0] == "list"
    assert {"train-heads", "evaluate", "report"} <= set(commands)


def test_an_objective_from_outside_reaches_the_tables(room, cli):
    folder = room(ROOT / "docs" / "adding" / "objective.md")
    quick = ["--method", "clip", "--objective", "huddle", "--epochs", "1", "--set", "dim=8", "--run", "runs/x/huddle-s0"]
    assert cli("train-heads", "--store", "stores/openmoji.zarr", *quick)[0] == 0
    last = json.loads((folder / "runs/x/huddle-s0/metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss", "together", "apart"} <= last.keys()
    assert cli("evaluate", "--run", "runs/x/huddle-s0")[0] == 0
    assert cli("report", "--runs", "runs/x", "--out", "reports/x")[0] == 0
    assert "huddle" in (folder / "reports/x/tables/recall.csv").read_text()


def test_an_imputer_from_outside_fills_the_gaps_of_a_store(room, cli):
    import numpy as np

    from calmrl_lab.store import FeatureStore

    room(ROOT / "docs" / "adding" / "imputer.md")
    asked = ["--store", "stores/openmoji.zarr", "--method", "median", "--out", "stores/filled.zarr"]
    assert cli("impute", *asked)[0] == 0
    before, after = FeatureStore.open("stores/openmoji.zarr"), FeatureStore.open("stores/filled.zarr")
    assert after.mask.all()
    keywords = before.features("keywords")[(before.split == "train")[before.mask[:, 4]]]
    gap = int(np.flatnonzero(~before.mask[:, 4])[0])
    np.testing.assert_allclose(after.features("keywords")[gap], np.median(keywords, axis=0), atol=2e-3)
