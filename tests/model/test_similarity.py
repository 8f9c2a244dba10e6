"""Overlap plus cosine: the vectors give the sum, and the weights are those that validation likes best."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.model.projection import Heads
from calmrl_lab.model.selection import mean_ranks, validation_score
from calmrl_lab.model.similarity import BESIDE_COSINE, BESIDE_OVERLAP, OverlapAndCosine, choose_weights
from calmrl_lab.ppca.latent_maps import LatentMaps


def planted(seed=0, n=80):
    """Two modalities of a common latent vector, the model that made them, and their table."""
    random = np.random.default_rng(seed)
    latent = random.standard_normal((n, 4))
    weights = [torch.from_numpy(random.standard_normal((d, 4))) for d in (6, 5)]
    rows = [torch.from_numpy(latent) @ w.T + 0.7 * torch.from_numpy(random.standard_normal((n, len(w)))) for w in weights]
    centres = tuple(torch.zeros(len(w), dtype=torch.float64) for w in weights)
    maps = LatentMaps(("a", "b"), centres, tuple(w / 0.49 for w in weights), torch.stack([w.T @ w / 0.49 for w in weights]))
    ids = np.array([f"i{i}" for i in range(n)])
    mask = torch.ones(n, 2, dtype=torch.bool)
    table = FeatureTable(("a", "b"), ids, ids, tuple(r.float() for r in rows), (torch.arange(n + 1),) * 2, mask)
    return maps, table


def noisy_embeddings(table, seed, noise):
    """Embeddings of a model that knows something else about the items than PPCA does."""
    random = torch.Generator().manual_seed(seed)
    own = torch.randn(len(table), 8, generator=random, dtype=torch.float64)
    return [normalize(own + noise * torch.randn(own.shape, generator=random, dtype=torch.float64), dim=1) for _ in range(2)]


def summed(maps, embeddings, weights, table):
    """The score of the sum written out in full: overlap (if any) plus weighted cosines."""

    def one_way(a, b, both):
        total = torch.zeros(len(table), len(table), dtype=torch.float64)
        if maps is not None:
            total += maps.log_density_ratio(a, [b], *(maps.information_vector(j, table.rows[j]) for j in (a, b)))
        for weight, member in zip(weights, embeddings, strict=True):
            total += weight * (member[a] @ member[b].T)
        return total

    return mean_ranks(lambda a, b, both: (one_way(a, b, both), one_way(b, a, both)), table)


def test_the_score_is_the_overlap_plus_the_weighted_cosine():
    maps, table = planted()
    heads = Heads({"a": 6, "b": 5}, 3, seed=0)
    left, right = OverlapAndCosine(maps, heads, 25.0).compared(0, 1, *table.rows)
    overlap = torch.matmul(*(x if i == 0 else x.T for i, x in enumerate(maps.compared(0, 1, *table.rows))))
    cosine = heads.project(0, table.rows[0]).double() @ heads.project(1, table.rows[1]).double().T
    assert torch.allclose(left @ right.T, overlap + 25 * cosine)


def test_weights_beside_an_overlap_are_the_best_that_are_tried():
    maps, table = planted()
    members = [noisy_embeddings(table, 1, 1.0), noisy_embeddings(table, 2, 1.5)]
    weights, score = choose_weights(members, table, maps)
    first = {w: summed(maps, members[:1], [w], table)["validation_mrr"] for w in BESIDE_OVERLAP}
    second = {w: summed(maps, members, [weights[0], w], table)["validation_mrr"] for w in BESIDE_OVERLAP}
    assert first[weights[0]] == pytest.approx(max(first.values()))
    assert second[weights[1]] == pytest.approx(max(second.values()))
    assert score == pytest.approx(summed(maps, members, weights, table))
    assert score["validation_mrr"] > summed(maps, [], [], table)["validation_mrr"]


def test_weights_beside_a_first_member_are_the_best_that_are_tried():
    _, table = planted()
    members = [noisy_embeddings(table, 1, 1.0), noisy_embeddings(table, 2, 1.5)]
    weights, score = choose_weights(members, table)
    tried = {w: summed(None, members, [1.0, w], table)["validation_mrr"] for w in BESIDE_COSINE}
    assert weights[0] == 1.0
    assert tried[weights[1]] == pytest.approx(max(tried.values()))
    assert score["validation_mrr"] > validation_score(members[0], table)["validation_mrr"]
