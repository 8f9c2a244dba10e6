"""Heads in closed form: they compute what the model says, ignore what is hidden, and find planted structure without a gradient step."""

import json

import numpy as np
import pytest
import torch

from calmrl_lab.config import TrainConfig
from calmrl_lab.data.table import FeatureTable
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.evaluate import evaluate
from calmrl_lab.model.closed_form import start_by_ppca
from calmrl_lab.model.initialisation import ppca_start
from calmrl_lab.model.selection import BESIDE_LIKELIHOOD_RATIO, validation_score
from calmrl_lab.model.similarity import Cosine, weighted_parts
from calmrl_lab.runs.run import Run
from calmrl_lab.training.train import train

FOUR = ["vision", "audio", "caption", "subtitle"]


def table(n=300, dims=(12, 9, 6), seed=0, missing=0.4, scales=(1.0, 1e3, 1e-3)):
    """Views of three shared factors with noise, on very different scales; the last view has a coordinate that never varies."""
    world = np.random.default_rng(7)
    maps = [world.normal(size=(3, d)) for d in dims]
    draw = np.random.default_rng(seed)
    latent = draw.normal(size=(n, 3))
    rows = [s * (latent @ w + 0.3 * draw.normal(size=(n, w.shape[1])) + 5) for w, s in zip(maps, scales, strict=True)]
    rows[-1][:, 0] = 2.0
    mask = draw.random((n, len(dims))) > missing
    mask[mask.sum(axis=1) < 2] = True
    ids = np.array([f"i{i}" for i in range(n)])
    offsets = tuple(torch.arange(n + 1) for _ in dims)
    return FeatureTable(
        tuple(f"m{j}" for j in range(len(dims))), ids, ids, tuple(torch.from_numpy(r).float() for r in rows), offsets, torch.from_numpy(mask)
    )  # fmt: skip


OPTIONS = {"latent_dim": 3, "components": 6, "whitening": 0.5, "iterations": 20, "noise_scale": 1.0, "embedding": "precision"}


def test_planted_factors_are_found_without_a_gradient_step():
    seen, held_out = table(), table(n=60, seed=1, missing=0.0)
    start = start_by_ppca(seen, held_out, OPTIONS, "cosine")
    made = ppca_start(start, seen)
    embeddings = [made.heads.project(j, made.feature_maps[j](rows)) for j, rows in enumerate(held_out.first_rows())]
    assert validation_score(Cosine(3), embeddings, held_out)["validation_mrr"] > 0.5
    assert start.chosen["candidates"] == 1
    assert {**start.chosen, **OPTIONS} == start.chosen


def test_heads_compute_the_embedding_of_the_model():
    seen = table()
    start = start_by_ppca(seen, seen, OPTIONS, "cosine")
    made = ppca_start(start, seen)
    for index, rows in enumerate(seen.first_rows()):
        exact = (rows.double() - start.maps.centres[index]) @ start.maps.embedding_weights("precision")[index]
        wanted = torch.nn.functional.normalize(exact, dim=1)
        assert torch.allclose(made.heads.project(index, made.feature_maps[index](rows)).double(), wanted, atol=1e-3)


def test_what_is_hidden_changes_nothing():
    seen = table()
    spoiled = [rows.masked_fill(~seen.mask[:, j].unsqueeze(1), 1e6) for j, rows in enumerate(seen.rows)]
    other = FeatureTable(seen.modalities, seen.ids, seen.group, tuple(spoiled), seen.offsets, seen.mask)
    held_out = table(n=60, seed=1, missing=0.0)
    first, second = (start_by_ppca(t, held_out, OPTIONS, "cosine") for t in (seen, other))
    assert all(torch.allclose(a, b) for a, b in zip(first.maps.maps, second.maps.maps, strict=True))


def test_scales_change_nothing():
    held_out = table(n=60, seed=1, missing=0.0)
    plain = start_by_ppca(table(scales=(1, 1, 1)), table(n=60, seed=1, missing=0.0, scales=(1, 1, 1)), OPTIONS, "cosine")
    scaled = start_by_ppca(table(), held_out, OPTIONS, "cosine")
    assert plain.chosen["validation_mrr"] == pytest.approx(scaled.chosen["validation_mrr"], abs=0.01)


def test_more_dimensions_than_items_work():
    seen = table(n=20, dims=(40, 30, 25), missing=0.2)
    start = start_by_ppca(seen, seen, {}, "cosine")
    assert np.isfinite(start.chosen["validation_mrr"])
    assert start.maps.latent_dim <= 19 * 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latent_dim": 500}, "allow 1 to"),
        ({"latent_dims": 3}, "did you mean 'latent_dim'"),
        ({"embedding": "median"}, "init_options: embedding"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(CalmrlError, match=said):
        start_by_ppca(table(), table(), options, "cosine")


def test_a_modality_that_nobody_shows_is_named():
    seen = table()
    mask = seen.mask.clone()
    mask[:, 1] = False
    with pytest.raises(CalmrlError, match="two training items with 'm1', there are 0"):
        start_by_ppca(seen.with_mask(mask & seen.mask), seen, OPTIONS, "cosine")


def config(store, **changes):
    values = {
        "store": str(store), "modalities": FOUR, "scenario": "pairs:0.25", "impute": "none", "init": "ppca",
        "init_options": {"latent_dim": 24, "components": 60, "whitening": 0.5, "iterations": 6, "noise_scale": 4.0}, "epochs": 3, "learning_rate": 1e-4,
    }  # fmt: skip
    return TrainConfig(**{**values, **changes})


def mean_recall(run, **options):
    return evaluate(run, **options).table()["recall_at_10"].mean()


def test_a_run_without_an_objective_is_its_start_and_beats_a_random_one(small_store, tmp_path):
    run = train(config(small_store, objective="none"), tmp_path / "start")
    assert run.summary["epochs"] == 0
    assert run.summary["start"]["latent_dim"] == run.summary["dim"] == 24
    random = train(config(small_store, objective="none", init="random", init_options={}), tmp_path / "random")
    assert random.summary["start"] is None
    assert mean_recall(run) > 2 * mean_recall(random)


def test_gentle_training_goes_on_from_there(small_store, tmp_path):
    run = train(config(small_store, objective="clip"), tmp_path / "run")
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["validation_mrr"] == pytest.approx(run.summary["start"]["validation_mrr"], abs=1e-3)
    assert run.summary["validation_mrr"] >= lines[0]["validation_mrr"]
    assert (
        train(config(small_store, objective="clip"), tmp_path / "again").summary["validation_mrr"]
        == run.summary["validation_mrr"]
    )


def test_runs_can_compare_by_the_likelihood_ratio(small_store, tmp_path):
    run = train(config(small_store, objective="none", similarity="likelihood-ratio"), tmp_path / "ratio")
    scored = evaluate(run)
    assert set(scored.scores["scorer"]) == {"likelihood-ratio"}
    assert mean_recall(run, similarity="cosine") > 0
    cosine = train(config(small_store, objective="none"), tmp_path / "cosine")
    assert mean_recall(cosine, similarity="likelihood-ratio") == pytest.approx(scored.table()["recall_at_10"].mean())


@pytest.mark.slow
def test_one_run_can_add_the_cosine_of_its_heads_to_the_likelihood_ratio(small_store, tmp_path, cli):
    run = train(config(small_store, objective="clip", similarity="sum"), tmp_path / "sum")
    assert run.summary["cosine_weight"] in BESIDE_LIKELIHOOD_RATIO
    assert weighted_parts(run.model().similarity) == [("likelihood-ratio", 1.0), ("cosine", run.summary["cosine_weight"])]
    assert set(evaluate(run).scores["scorer"]) == {"sum"}
    assert set(evaluate(run, similarity="cosine").scores["scorer"]) == {"cosine"}
    cosine = train(config(small_store, objective="clip"), tmp_path / "cosine")
    code, _, err = cli("evaluate", "--run", cosine.path, "--similarity", "sum")
    assert code == 2
    assert "chose no weight for similarity 'sum'" in err


def test_a_likelihood_ratio_needs_the_model_it_compares_by(small_store, tmp_path, cli):
    with pytest.raises(CalmrlError, match="similarity 'sum' adds the cosine"):
        train(config(small_store, objective="clip", similarity="sum", init="random", init_options={}), tmp_path / "a")
    with pytest.raises(CalmrlError, match="similarity 'likelihood-ratio' compares by the PPCA"):
        train(config(small_store, objective="clip", similarity="likelihood-ratio"), tmp_path / "a")
    plain = train(config(small_store, objective="none", init="random", init_options={}), tmp_path / "b")
    code, _, err = cli("evaluate", "--run", plain.path, "--similarity", "likelihood-ratio")
    assert code == 2
    assert "has no PPCA of its features" in err
    assert cli("evaluate", "--run", plain.path, "--similarity", "dot")[0] == 2
    code, _, err = cli("evaluate", "--run", plain.path, "--score", "cosine")
    assert code == 2
    assert "it is now called --similarity" in err
    code, _, err = cli("evaluate", "--run", plain.path, "--similarity", "overlap")
    assert code == 2
    assert "it is now called likelihood-ratio" in err


def test_the_command_line_trains_and_scores_in_closed_form(small_store, tmp_path, cli):
    words = ("train-heads", "--store", small_store, "--modalities", ",".join(FOUR), "--init", "ppca", "--objective", "none")
    options = (
        "--impute",
        "none",
        "--set",
        "init_options.latent_dim=16",
        "--set",
        "init_options.components=40",
        "--similarity",
        "likelihood-ratio",
    )
    code, _, err = cli(*words, *options, "--run", tmp_path / "run")
    assert code == 0, err
    assert cli("evaluate", "--run", tmp_path / "run", "--direction", "caption:subtitle")[0] == 0
    assert Run.open(tmp_path / "run").model().similarity.dim == 16
