"""Kernel principal components equal the textbook's, whatever the blocks, and are what heads and PPCA are fitted to if asked."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calmrl_lab.config import TrainConfig
from calmrl_lab.data.table import FeatureTable
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.evaluate import evaluate
from calmrl_lab.evaluation.run_items import open_run
from calmrl_lab.linalg import kernel_pca as kernel_map
from calmrl_lab.linalg.kernel_pca import KernelPCA
from calmrl_lab.model.closed_form import start_by_ppca
from calmrl_lab.model.initialisation import ppca_start
from calmrl_lab.runs.run import Run
from calmrl_lab.training.train import train


def slow(rows, points):
    """Inner products of the kernel coordinates of `points` and `rows`, from the definitions: the centred kernel in float64."""
    standard, theirs = ((part - rows.mean(axis=0)) / rows.std(axis=0) for part in (rows, points))
    squares = ((standard[:, None] - standard[None]) ** 2).sum(axis=2)
    apart = np.sort(squares[squares > 0])
    width = apart[(len(apart) - 1) // 2]
    kernel = np.exp(-squares / width)
    ours = np.exp(-((theirs[:, None] - standard[None]) ** 2).sum(axis=2) / width)
    return ours - ours.mean(axis=1, keepdims=True) - kernel.mean(axis=0) + kernel.mean()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 30), st.integers(1, 5))
def test_coordinates_are_those_of_the_textbook(seed, n, d):
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(n, d)) * 10.0 ** draw.integers(-2, 3, d)
    others = draw.normal(size=(7, d)) * rows.std(axis=0)
    found = KernelPCA.of(torch.from_numpy(rows))
    coordinates = found(torch.from_numpy(rows)).double()
    for points in (rows, others):
        assert (found(torch.from_numpy(points)).double() @ coordinates.T).numpy() == pytest.approx(slow(rows, points), abs=5e-3)
    assert coordinates.mean(dim=0).abs().max() < 1e-3
    moment = coordinates.T @ coordinates
    assert (moment - moment.diag().diag()).abs().max() < 5e-3 * moment.max()
    assert bool((moment.diag().diff() <= 1e-3 * moment.max()).all())


def test_blocks_change_nothing_and_many_rows_give_a_thousand_landmarks(monkeypatch):
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(1500, 4)))
    found = KernelPCA.of(rows, 50)
    assert (found.landmarks.shape, found.dim) == ((1000, 4), 50)
    whole = found(rows)
    monkeypatch.setattr(kernel_map, "_BLOCK", 7)
    assert torch.allclose(found(rows), whole, atol=1e-5)
    assert found(rows[:0]).shape == (0, 50)


@pytest.mark.parametrize("rows", [np.ones((5, 3)), np.repeat(np.eye(2), 4, axis=0), np.array([[0.0, 1.0], [2.0, 1.0]])])
def test_rows_that_are_alike_give_finite_coordinates(rows):
    found = KernelPCA.of(torch.from_numpy(rows))
    coordinates = found(torch.from_numpy(np.concatenate([rows, 100 * rows])))
    assert torch.isfinite(coordinates).all()
    assert bool((coordinates[: len(rows)].std(dim=0) > 0).any()) == (len(np.unique(rows, axis=0)) > 1)


def circles(n, seed):
    """Two views of an angle of which no linear map tells one from the other."""
    draw = np.random.default_rng(seed)
    angle = draw.uniform(0, 2 * np.pi, n)
    views = [np.stack([np.cos(angle), np.sin(angle)], axis=1), np.stack([np.cos(2 * angle), np.sin(2 * angle)], axis=1)]
    rows = tuple(torch.from_numpy(view + 0.05 * draw.normal(size=view.shape)).float() for view in views)
    ids = np.array([f"i{i}" for i in range(n)])
    return FeatureTable(("a", "b"), ids, ids, rows, (torch.arange(n + 1),) * 2, torch.ones(n, 2, dtype=torch.bool))


@pytest.mark.parametrize("similarity", ["cosine", "likelihood-ratio", "sum"])
def test_a_kernel_finds_what_linear_heads_cannot(similarity):
    seen, held_out = circles(300, 0), circles(80, 1)
    options = {"latent_dim": "auto", "components": 20}
    plain, kernel = (start_by_ppca(seen, held_out, {**options, "kernel": k}, similarity) for k in ("none", "rbf"))
    assert kernel.chosen["validation_mrr"] > 1.8 * plain.chosen["validation_mrr"]
    start = ppca_start(kernel, seen)
    for index, rows in enumerate(held_out.first_rows()):
        coordinates = kernel.feature_maps[index](rows).double()
        exact = (coordinates - kernel.maps.centres[index]) @ kernel.maps.embedding_weights("precision")[index]
        wanted = torch.nn.functional.normalize(exact, dim=1)
        assert torch.allclose(start.heads.project(index, start.feature_maps[index](rows)).double(), wanted, atol=1e-3)


@pytest.mark.parametrize("similarity", ["cosine", "likelihood-ratio", "sum"])
def test_kernels_can_be_for_the_heads_alone(similarity):
    seen, held_out = circles(300, 0), circles(80, 1)
    options = {"latent_dim": 3, "components": 20}
    apart = start_by_ppca(seen, held_out, {**options, "kernel": "heads"}, similarity)
    heads = start_by_ppca(seen, held_out, {**options, "kernel": "rbf"}, "cosine")
    beside = start_by_ppca(seen, held_out, {**options, "kernel": "none"}, "likelihood-ratio")
    of_heads = beside if similarity == "likelihood-ratio" else heads
    of_ratio = (heads if similarity == "cosine" else beside).likelihood_ratio
    for index, (name, rows) in enumerate(zip(held_out.modalities, held_out.first_rows(), strict=True)):
        one, other = (s.maps.information_vector(index, s.feature_maps[index](rows)) for s in (apart, of_heads))
        assert torch.equal(one, other)
        assert torch.equal(apart.likelihood_ratio.vectors(name, rows, rows), of_ratio.vectors(name, rows, rows))
    if similarity == "sum":
        assert apart.chosen["candidates"] == heads.chosen["candidates"] + beside.chosen["candidates"]
        assert apart.chosen["likelihood_ratio_noise_scale"] == beside.chosen["likelihood_ratio_noise_scale"]


@pytest.mark.parametrize("kernel", ["rbf", "heads"])
def test_a_run_with_kernels_does_what_every_run_does(small_store, tmp_path, kernel):
    common = {"store": str(small_store), "scenario": "pairs:0.25", "epochs": 1, "impute": "none", "objective": "clip"}
    common["modalities"] = ["vision", "caption", "subtitle"]
    options = {"kernel": kernel, "latent_dim": 16, "components": 40, "whitening": 0.5}
    run = train(TrainConfig(**common, init="ppca", init_options=options, similarity="sum"), tmp_path / "sum")
    assert run.summary["start"]["kernel"] == kernel
    first = evaluate(run).table()
    assert first.equals(evaluate(Run.open(run.path)).table())
    _, model, items = open_run(run)
    assert torch.isfinite(model.represent(items.of("test")).items).all()
    random = train(TrainConfig(**common, init="random", features="kernel", dim=16), tmp_path / "random")
    assert random.model().projection.inputs != list(random.model().dims.values())
    evaluate(random)


def test_tables_in_memory_are_mapped_once_and_streams_as_they_are_read(small_store, tmp_path, monkeypatch):
    common = {
        "store": str(small_store),
        "scenario": "pairs:0.25",
        "epochs": 2,
        "impute": "none",
        "objective": "clip",
        "dim": 16,
    }
    config = {**common, "init": "random", "features": "kernel", "modalities": ["vision", "caption", "subtitle"]}
    calls, call = [], KernelPCA.__call__
    monkeypatch.setattr(KernelPCA, "__call__", lambda self, rows: (calls.append(len(rows)), call(self, rows))[1])
    memory = train(TrainConfig(**config), tmp_path / "memory")
    once = len(calls)
    stream = train(TrainConfig(**config, memory="stream"), tmp_path / "stream")
    assert len(calls) - once > once
    assert memory.summary["validation_mrr"] == pytest.approx(stream.summary["validation_mrr"], abs=0.02)
    _, model, items = open_run(memory)
    assert torch.isfinite(model.embed(items.of("test")).items).all()


def test_kernels_need_two_rows(small_store, tmp_path):
    seen = circles(5, 0)
    alone = seen.with_mask(np.array([[True, False]] * 4 + [[True, True]]))
    with pytest.raises(CalmrlError, match="needs at least two training items with 'b', there are 1"):
        start_by_ppca(alone, seen, {"kernel": "rbf"}, "cosine")
