"""A run of VAST keeps its fusion heads, and curves, search indexes and re-ranking score with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.missing_curves import run_curves
from calmrl_lab.evaluation.reranking.rerank import rerank_run
from calmrl_lab.evaluation.retrieval import rank_items
from calmrl_lab.evaluation.run_items import open_run
from calmrl_lab.search.index_folder import build_gallery
from calmrl_lab.training.train import train

QUICK = {
    "modalities": ("vision", "audio", "caption"),
    "epochs": 3,
    "dim": 16,
    "batch_size": 64,
    "impute": "none",
    "scenario": "pairs:0.5",
}


@pytest.fixture(scope="module")
def runs(small_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: train(TrainConfig(store=str(small_store), objective=name, keep_state=True, **QUICK), folder / name)
        for name in ("vast", "clip")
    }


def test_what_the_objective_learned_is_kept_beside_the_heads(runs):
    objective = runs["vast"].model().trained_objective()
    (weight,) = objective.fusion.weights
    start = torch.eye(16).repeat(2, 1) / 2
    assert not torch.equal(weight, start)
    checkpoint = torch.load(runs["vast"].path / "state.pt", weights_only=True)
    assert all(torch.equal(value, checkpoint["best_objective"][key]) for key, value in objective.state_dict().items())
    assert runs["clip"].model().trained_objective().scale.value.shape == ()


def test_curves_score_by_the_trained_fusion(runs):
    frame = run_curves(runs["vast"], scorers=["centroid", "fused"], scenarios=["full", "random:0.5"])
    fused = frame[frame["scorer"] == "fused"]
    assert set(fused["query"]) | set(fused["gallery"]) == {"caption", "vision+audio"}
    assert set(fused["gallery_scenario"]) == {"full", "random:0.5"}
    _, model, items = open_run(runs["vast"])
    embedded = model.embed(items.of("test"))
    scorer = model.scorer("fused", "caption", ["vision", "audio"])
    rows, owners, kept = embedded.rows[2], embedded.owners[2], torch.arange(len(embedded))
    forward, _ = rank_items(scorer, rows, owners, embedded.items[:, :2], embedded.mask[:, :2], kept)
    part = fused[(fused["gallery_scenario"] == "full") & (fused["side"] == "gallery")]
    np.testing.assert_array_equal(part["greater"], np.asarray(forward.greater)[forward.positives > 0])


def test_an_index_and_a_second_look_take_fused_vectors(runs, tmp_path):
    gallery = build_gallery(runs["vast"], tmp_path / "index", modalities=["vision", "audio"], scorer="fused")
    assert gallery.facts["scorer"] == "fused"
    frame = rerank_run(runs["vast"], lambda similarity, *_: similarity, "same", scorer="fused")
    assert set(frame["scorer"]) == {"fused", "fused+same"}


def test_who_has_no_fusion_says_so(runs, cli, tmp_path):
    code, _, said = cli("curves", "--run", runs["clip"].path, "--scorer", "fused", "--query", "caption")
    assert code == 2
    assert "scorer 'fused' needs fusion heads" in " ".join(said.split())
    with pytest.raises(CalmrlError, match="trained for queries of 'caption'"):
        run_curves(runs["vast"], scorers=["fused"], queries=["vision"])
    with pytest.raises(CalmrlError, match="take no modality 'caption'"):
        build_gallery(runs["vast"], tmp_path / "index", scorer="fused")
    model = runs["vast"].model()
    other = replace(model, objective=replace(model.objective, name="gram"))
    with pytest.raises(CalmrlError, match="is not 'gram' as it is here"):
        other.trained_objective()
