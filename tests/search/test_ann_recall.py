"""The recall of approximate indexes along the effort."""

import csv
import json

import numpy as np
import pytest

from calmrl_lab.errors import CalmrlError
from calmrl_lab.reporting.content.ann_recall import effort_figure
from calmrl_lab.search.ann_recall import effort_curve
from calmrl_lab.search.faiss_index import build_index, exact_search


def vectors(n, seed, d=16):
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_more_effort_finds_more_until_all(kind):
    gallery, queries = vectors(1500, 0), vectors(200, 1)
    index = build_index(gallery, kind)
    curve = effort_curve(index, *exact_search([gallery[:700], gallery[700:]], queries, 10), queries)
    # A plain count: how many of the ten largest inner products are among those found with the least effort.
    true = np.argsort(-(queries @ gallery.T), axis=1)[:, :10]
    found = index.search(queries, 10, int(curve["effort"].iloc[0])).positions
    expected = 100 * np.mean([len(set(a) & set(b)) / 10 for a, b in zip(true, found, strict=True)])
    assert curve["recall"].iloc[0] == pytest.approx(expected, abs=0.2)
    assert curve["recall"].is_monotonic_increasing
    assert curve["recall"].iloc[-1] > (99.99 if kind == "ivf" else 99)
    assert ((curve["low"] <= curve["recall"]) & (curve["recall"] <= curve["high"])).all()
    assert (curve[["milliseconds", "exact_milliseconds"]] > 0).all(axis=None)
    svg = effort_figure(curve, kind, 1500, 200).svg()
    assert "time per query, ms" in svg
    assert svg.count("<title>") >= 2 * len(curve)


def test_an_exact_index_has_no_curve():
    gallery = vectors(50, 0)
    with pytest.raises(CalmrlError, match="flat index is exact"):
        effort_curve(build_index(gallery), *exact_search([gallery], gallery, 10), gallery)
    with pytest.raises(CalmrlError, match="without queries"):
        effort_curve(build_index(gallery, "hnsw"), *exact_search([gallery], gallery, 10), gallery[:0])


def test_the_index_folder_holds_table_and_figure(trained, tmp_path, cli):
    out = tmp_path / "index"
    code, said, _ = cli("index", "--run", trained.path, "--out", out, "--index-type", "hnsw")
    assert code == 0
    assert "recall.svg" in said
    with open(out / "recall.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["recall"]) >= 100 * json.loads((out / "gallery.json").read_text())["recall_against_exact"] - 1
    code, _, _ = cli("index", "--run", trained.path, "--out", out)
    assert code == 0
    assert not (out / "recall.svg").exists()


def test_large_efforts_ask_fewer_queries_from_all_over(monkeypatch):
    gallery, queries = vectors(1500, 0), vectors(200, 1)
    index, found = build_index(gallery, "ivf"), exact_search([gallery], queries, 10)
    whole = effort_curve(index, *found, queries)
    monkeypatch.setattr("calmrl_lab.search.ann_recall._MOST_PAIRS", 30_000)
    monkeypatch.setattr("calmrl_lab.search.ann_recall._FEWEST_QUERIES", 10)
    few = effort_curve(index, *found, queries)
    assert few["recall"].iloc[0] == whole["recall"].iloc[0]
    assert (few["high"] - few["low"]).iloc[4] > (whole["high"] - whole["low"]).iloc[4]
    assert few["recall"].to_numpy() == pytest.approx(whole["recall"].to_numpy(), abs=15)
