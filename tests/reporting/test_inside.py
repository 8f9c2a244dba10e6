"""Looking inside: examples are what the run really finds, the worst cases are the worst."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from runs.resealing import reseal
from synthetic_runs import RECIPES, write_experiment

from calmrl_lab.model.alignment_model import AlignmentModel
from calmrl_lab.model.feature_map import identities
from calmrl_lab.model.projection import Heads
from calmrl_lab.model.similarity import Cosine
from calmrl_lab.reporting import write_report
from calmrl_lab.reporting.content.examples import cases, harmed_fillings, worst_shifts
from calmrl_lab.reporting.content.nearest_items import Items, describe, found_first, source
from calmrl_lab.reporting.results.collect import gather
from calmrl_lab.reporting.results.recalls import recalls
from calmrl_lab.runs.experiment_folder import ExperimentFolder
from calmrl_lab.runs.run import Run
from calmrl_lab.store import FeatureStore

MODALITIES = ("vision", "audio", "caption")


@pytest.fixture(scope="module")
def real(small_store, tmp_path_factory):
    """Runs with untrained heads over the small store, scored by hand: ranks that can be recomputed."""
    folder = tmp_path_factory.mktemp("real") / "demo"
    write_experiment(folder, RECIPES[2:4], seeds=(0,), items=10, modalities=MODALITIES)
    store = FeatureStore.open(small_store)
    for index, name in enumerate(("pmrl-s0", "calmrl-ppca-s0")):
        run = folder / name
        config = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump({**config, "store": str(small_store)}))
        dims = {m: store.dims[m] for m in MODALITIES}
        AlignmentModel(dims, identities(list(dims.values())), Heads(dims, 32, seed=index), Cosine(32)).save(Run(run))
        reseal(run)
        ranks(run, store).to_parquet(run / "scores.parquet")
        reseal(run)
    record = ExperimentFolder(folder).read()
    record["store"] |= {"path": str(small_store), "digest": store.digest, "dataset": "openmoji"}
    ExperimentFolder(folder).write(record)
    return folder


def similarity(run, store, query, gallery):
    """[N, N] cosine by plain matrix products, and the ids of the test items."""
    model, test = Run.open(run).model(), np.flatnonzero(store.split == "test")
    sides = []
    for name in (query, gallery):
        rows = np.asarray(store.features(name), dtype=np.float32)[store.offsets(name)[test]]
        sides.append(model.project(name, torch.from_numpy(rows)).detach().numpy())
    return sides[0] @ sides[1].T, store.ids[test], store.group[test]


def ranks(run, store):
    frames = []
    for query, gallery in (("caption", "vision"), ("vision", "caption")):
        scores, ids, groups = similarity(run, store, query, gallery)
        own = np.diag(scores)[:, None]
        columns = {
            "query": query,
            "gallery": gallery,
            "scorer": "cosine",
            "gallery_scenario": "full",
            "item": ids,
            "group": groups,
        }
        greater = (scores > own).sum(axis=1)
        frames.append(
            pd.DataFrame(
                {
                    **columns,
                    "pattern": "x",
                    "greater": greater,
                    "equal": 0,
                    "best_positives": 1,
                    "candidates": len(ids),
                    "positives": 1,
                }
            )
        )
    return pd.concat(frames)


def test_what_is_found_first_is_what_plain_products_find(real, small_store):
    store, gathered = FeatureStore.open(small_store), gather(real)
    run = gathered.methods[0].runs[0]
    scores, ids, _ = similarity(run.path, store, "caption", "vision")
    found = found_first(store, run, ("caption", "vision"), [str(ids[3]), "not an item"], "test")
    assert found == {str(ids[3]): [str(ids[i]) for i in np.argsort(-scores[3], kind="stable")[:5]]}


def test_the_examples_on_the_page_agree_with_the_ranks(real, tmp_path, without_pdf):
    html = write_report(real, tmp_path / "out").page.read_text(encoding="utf-8")
    assert 'id="examples"' in html
    for article in html.split('<article class="example">')[1:]:
        for part in article.split('<p class="finder">')[1:]:
            rank = float(part.split("rank ")[1].split("<")[0])
            hits = part.split("</ol>")[0].split("<li ")[1:]
            right = [index + 1 for index, hit in enumerate(hits) if 'class="right"' in hit]
            assert right == ([rank] if rank <= 5 else [])


def test_items_are_shown_by_name_and_face(small_store):
    items = describe(FeatureStore.open(small_store))
    assert items.names
    item = next(iter(items.names))
    assert items.name(item) != item
    assert items.picture(item).startswith("data:image/svg+xml;base64,") or len(items.picture(item)) < len(item)
    assert (describe(None).name("x"), describe(None).picture("x")) == ("x", "")


def test_without_the_store_or_with_another_one_there_are_no_examples(real, small_store, tmp_path):
    folder = tmp_path / "demo"
    shutil.copytree(real, folder)
    record = ExperimentFolder(folder).read()
    for change in ({"path": str(tmp_path / "gone.zarr")}, {"path": str(small_store), "digest": "another"}):
        record["store"] |= change
        ExperimentFolder(folder).write(record)
        assert source(gather(folder)) is None


@pytest.mark.slow
def test_cases_are_counted_and_the_same_every_time(experiment):
    gathered = gather(experiment)
    found = recalls(gathered)
    method, other = gathered.methods[3], gathered.methods[2]
    first, second = (cases(gathered, found, method, other) for _ in range(2))
    assert first.kinds == second.kinds
    assert first.direction == ("caption", "vision")
    kinds = {kind: (count, picked) for kind, count, picked in first.kinds}
    assert all(case.rank == 1 != case.other_rank for case in kinds["won"][1])
    assert all(case.rank != 1 == case.other_rank for case in kinds["lost"][1])
    assert all(len(picked) == min(3, count) for count, picked in kinds.values())
    assert cases(gathered, found, method, None) is None


def test_worst_cases_are_sorted_and_counted(experiment):
    method = gather(experiment).methods[3]
    for table in (worst_shifts(method, "test", Items()), harmed_fillings(method, "test", Items())):
        changes = [row[-1].sort for row in table.rows]
        assert changes == sorted(changes, reverse=True)
        assert changes[-1] > 0
        assert len(changes) <= 10
        assert " of " in table.notes[0]


def test_nothing_harmed_is_no_table(experiment):
    gathered = gather(experiment)
    assert harmed_fillings(gathered.methods[4], "test", Items()) is None  # the mean cannot be worse than itself
    assert worst_shifts(gathered.methods[0], "test", Items()) is None
