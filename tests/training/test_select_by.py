"""What validation ranks by when it chooses an epoch: the scorer of each objective's system, or pairs; against loops."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from calmrl_lab.config import TrainConfig
from calmrl_lab.data.table import FeatureTable
from calmrl_lab.errors import CalmrlError
from calmrl_lab.methods.resolve import resolve
from calmrl_lab.model.item_ranking import ItemRanking
from calmrl_lab.model.selection import mean_over_directions
from calmrl_lab.objectives import objectives
from calmrl_lab.scorers.base import make_scorer
from calmrl_lab.training.requirements import item_ranking, make_objective, selected_by
from calmrl_lab.training.session import Session
from calmrl_lab.training.train import train

THREE, DIM = ("vision", "audio", "caption"), 8
OWN = {
    "clip": "cosine", "imagebind": "cosine", "languagebind": "cosine", "pmrl": "cosine", "calmrl": "cosine", "scalar": "query-centroid",
    "vast": "fused", "gram": "volume", "triangle": "area", "symile": "multilinear", "gated-symile": "objective", "comm": "objective",
    "confu": "objective",
}  # fmt: skip


def table_of(items, mask):
    """Items whose features are already embeddings."""
    rows = tuple(items[mask[:, j], j] for j in range(mask.shape[1]))
    offsets = tuple(torch.cat([torch.zeros(1, dtype=torch.int64), mask[:, j].long().cumsum(0)]) for j in range(mask.shape[1]))
    ids = [f"i{n}" for n in range(len(items))]
    return FeatureTable(THREE, np.array(ids), np.array(ids), rows, offsets, mask)


@pytest.fixture
def items():
    generator = torch.Generator().manual_seed(3)
    common = torch.randn(12, 1, DIM, generator=generator)
    vectors = normalize(common + 0.7 * torch.randn(12, 3, DIM, generator=generator), dim=2)
    mask = torch.rand(12, 3, generator=generator) > 0.2
    mask[:4] = True
    return vectors.masked_fill(~mask.unsqueeze(2), 0.0), mask


def test_every_objective_is_selected_by_the_score_of_its_system():
    found = {name: selected_by(resolve({"store": "s", "method": name}, "t")) for name in OWN}
    assert found == OWN
    assert set(OWN) == set(objectives.names())


@pytest.mark.parametrize(
    ("changes", "by"),
    [
        ({"method": "gram", "select_by": "cosine"}, "cosine"),
        ({"method": "gram", "select_by": "similarity"}, "cosine"),
        ({"method": "clip", "select_by": "centroid"}, "centroid"),
        ({"method": "ppca-clip-sum"}, "sum"),
        ({"method": "ppca-clip-sum", "select_by": "cosine"}, "cosine"),
        ({"method": "likelihood-ratio"}, "likelihood-ratio"),
        ({"method": "recommended"}, "cosine"),
        ({"method": "closed-form"}, "cosine"),
    ],
)
def test_one_setting_says_what_validation_ranks_by(changes, by):
    assert selected_by(resolve({"store": "s", **changes}, "t")) == by


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"select_by": "volum"}, "cannot rank by 'volum'; did you mean 'volume'"),
        ({"select_by": "likelihood"}, "cannot rank by 'likelihood'"),
        ({"select_by": "sum"}, "its similarity is 'cosine'"),
        ({"select_by": "fused"}, "needs fusion heads"),
        ({"select_by": "objective"}, "needs an objective with a score of its own"),
    ],
)
def test_what_validation_cannot_rank_by_is_refused(changes, said):
    config = TrainConfig(store="s", objective="clip", **changes)
    with pytest.raises(CalmrlError, match=said):
        item_ranking(config, THREE, make_objective(config, THREE, DIM))


@pytest.mark.parametrize("name", sorted(name for name, by in OWN.items() if by != "cosine"))
def test_the_score_is_that_of_queries_among_items_and_back(name, items):
    vectors, mask = items
    config = TrainConfig(store="s", objective=name)
    objective = make_objective(config, THREE, DIM).eval()
    ranking = item_ranking(config, THREE, objective)
    found = ranking.score(list(vectors.unbind(dim=1)), table_of(vectors, mask))
    # Systems that train queries of one modality are asked in these.
    asking = [objective.query] if hasattr(objective, "query") else range(3)
    directions = []
    for query in asking:
        others = [j for j in range(3) if j != query]
        scorer = make_scorer(OWN[name], THREE[query], [THREE[j] for j in others], {"objective": objective})
        able = [n for n in range(12) if mask[n, query] and mask[n, others].any()]
        scores = torch.tensor(
            [
                [float(scorer.score(vectors[a, query][None], vectors[b, others][None], mask[b, others][None])) for b in able]
                for a in able
            ],
            dtype=torch.float64,
        )
        directions += [scores, scores.T]
    assert found == pytest.approx(mean_over_directions(directions))
    assert 0.1 < found["validation_mrr"] <= 1


@pytest.mark.parametrize("name", ["gram", "symile", "vast", "clip"])
def test_a_run_keeps_the_epoch_that_its_own_score_likes_best(small_store, tmp_path, name):
    quick = {"epochs": 3, "dim": 16, "batch_size": 128, "modalities": THREE, "scenario": "pairs:0.5", "learning_rate": 0.01}
    run = train(TrainConfig(store=str(small_store), objective=name, **quick), tmp_path / name)
    scores = [json.loads(line)["validation_mrr"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert run.summary["selected_by"] == OWN[name]
    assert run.summary["validation_mrr"] == max(scores)
    assert run.summary["best_epoch"] == scores.index(max(scores))


def test_validation_by_whole_items_is_bounded(small_store, tmp_path, monkeypatch):
    monkeypatch.setattr("calmrl_lab.training.session.RANKED_ITEMS", 10)
    seen = []
    original = ItemRanking.score
    monkeypatch.setattr(ItemRanking, "score", lambda self, rows, table: seen.append(len(table)) or original(self, rows, table))
    train(TrainConfig(store=str(small_store), objective="symile", epochs=1, dim=8, modalities=THREE), tmp_path / "run")
    assert seen == [10, 10]


def test_mirrored_embeddings_are_another_score_for_those_who_train_it(items):
    """Signs that the cosines of pairs would change may be changed only where the system's own score does not notice."""
    vectors, mask = items[0], torch.ones(12, 3, dtype=torch.bool)
    vectors = normalize(vectors + 0.1, dim=2)
    mirrored = vectors * torch.tensor([1.0, -1.0, 1.0])[None, :, None]
    for name, by in OWN.items():
        if by == "cosine":
            continue
        objective = make_objective(TrainConfig(store="s", objective=name), THREE, DIM).eval()
        ranking = ItemRanking.of(by, THREE, objective)
        own, other = (ranking.score(list(rows.unbind(dim=1)), table_of(rows, mask)) for rows in (vectors, mirrored))
        if objectives.get(name).signs_matter:
            assert own != pytest.approx(other), name


def test_heads_of_a_product_keep_the_signs_of_training(small_store, tmp_path, monkeypatch):
    monkeypatch.setattr("calmrl_lab.training.session.best_signs", lambda cosines: (1, -1, 1))
    quick = {"epochs": 1, "dim": 8, "modalities": THREE}
    signs = {}
    for name in ("symile", "pmrl"):
        config = TrainConfig(store=str(small_store), objective=name, **quick)
        signs[name] = Session(config, torch.device("cpu"))._signs()
    assert signs == {"symile": (1, 1, 1), "pmrl": (1, -1, 1)}
