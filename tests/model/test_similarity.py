"""Similarities: pairs, sets and single vectors agree, sums are sums, weights are those that validation likes best, and all come back from a file."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.errors import CalmrlError
from calmrl_lab.model import similarity
from calmrl_lab.model.feature_map import fit_scaling, identities
from calmrl_lab.model.selection import BESIDE_COSINE, BESIDE_LIKELIHOOD_RATIO, choose_weights, mean_ranks, validation_score
from calmrl_lab.model.similarity import Cosine, LikelihoodRatio, Sum, weighted_parts
from calmrl_lab.ppca.latent_maps import LatentMaps

NAMES = ("a", "b", "c", "d")


def planted(seed=0, n=80):
    """Two modalities of a common latent vector, the likelihood ratio of the model that made them, and their table."""
    random = np.random.default_rng(seed)
    latent = random.standard_normal((n, 4))
    weights = [torch.from_numpy(random.standard_normal((d, 4))) for d in (6, 5)]
    rows = [torch.from_numpy(latent) @ w.T + 0.7 * torch.from_numpy(random.standard_normal((n, len(w)))) for w in weights]
    centres = tuple(torch.zeros(len(w), dtype=torch.float64) for w in weights)
    maps = LatentMaps(("a", "b"), centres, tuple(w / 0.49 for w in weights), torch.stack([w.T @ w / 0.49 for w in weights]))
    ids = np.array([f"i{i}" for i in range(n)])
    mask = torch.ones(n, 2, dtype=torch.bool)
    table = FeatureTable(("a", "b"), ids, ids, tuple(r.float() for r in rows), (torch.arange(n + 1),) * 2, mask)
    return LikelihoodRatio(maps, identities([6, 5])), table


def latent_model(draw, q):
    """PPCA of four modalities with random parameters."""
    dims = draw.integers(1, 6, len(NAMES))
    weights = [torch.from_numpy(draw.normal(size=(d, q))) for d in dims]
    noise = draw.uniform(0.1, 2, len(NAMES))
    centres = tuple(torch.from_numpy(draw.normal(size=d)) for d in dims)
    maps = tuple(w / s for w, s in zip(weights, noise, strict=True))
    precisions = torch.stack([w.T @ w / s for w, s in zip(weights, noise, strict=True)])
    return LatentMaps(NAMES, centres, maps, precisions), dims.tolist()


def made(draw, q, weights):
    """The likelihood ratio, or its sum with cosines of 5 dimensions times `weights`."""
    maps, dims = latent_model(draw, q)
    ratio = LikelihoodRatio(maps, identities(dims))
    return Sum(((ratio, 1.0), *((Cosine(5), weight) for weight in weights))) if weights else ratio


def vectors_of(one, draw, *shape):
    """Random vectors as `one` compares them: unit norm where they are embeddings."""
    parts = [part for part, _ in one.parts] if isinstance(one, Sum) else [one]
    values = [torch.from_numpy(draw.normal(size=(*shape, part.dim))) for part in parts]
    unit = [normalize(value, dim=-1) if isinstance(part, Cosine) else value for part, value in zip(parts, values, strict=True)]
    return torch.cat(unit, dim=-1)


WEIGHTS = st.sampled_from([(), (0.3,), (12.5, 2.0)])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.permutations(range(4)), st.integers(1, 4), WEIGHTS)
def test_products_of_single_vectors_are_the_scores_of_sets(seed, q, order, count, weights):
    draw = np.random.default_rng(seed)
    one, shown = made(draw, q, weights), [NAMES[j] for j in order[:count]]
    mask = torch.from_numpy(draw.uniform(size=(9, count)) < 0.5)
    items = vectors_of(one, draw, 9, count).masked_fill(~mask.unsqueeze(-1), 0.0)
    queries = vectors_of(one, draw, 3)
    seen = mask.any(dim=1)
    patterns = [[name for name, there in zip(shown, kind, strict=True) if there] for kind in torch.unique(mask[seen], dim=0)]
    found = one.item_vectors(shown, patterns, items, mask)
    for query in NAMES:
        expected = one.set_scores(query, shown, queries, items, mask)[:, seen]
        products = one.query_vectors(shown, patterns, query, queries) @ found[seen].T
        assert products.numpy() == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-9)
    assert bool((found[~seen] == 0).all())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), WEIGHTS)
def test_a_pair_is_a_set_of_one_up_to_a_term_of_the_query(seed, q, weights):
    draw = np.random.default_rng(seed)
    one = made(draw, q, weights)
    queries, items = vectors_of(one, draw, 3), vectors_of(one, draw, 6, 1)
    left, right = one.pair_vectors("a", "c", queries, items[:, 0])
    rest = one.set_scores("a", ["c"], queries, items, torch.ones(6, 1, dtype=torch.bool)) - left @ right.T
    assert rest.numpy() == pytest.approx(np.broadcast_to(rest[:, :1].numpy(), rest.shape), rel=1e-8, abs=1e-8)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), WEIGHTS)
def test_every_similarity_comes_back_from_its_description(seed, q, weights):
    draw = np.random.default_rng(seed)
    one = made(draw, q, weights)
    description, tensors = one.described("place/")
    again = similarity.read(description, tensors, "place/")
    assert (again.name, again.dim, weighted_parts(again)) == (one.name, one.dim, weighted_parts(one))
    queries, items = vectors_of(one, draw, 2), vectors_of(one, draw, 3)
    for before, after in zip(
        one.pair_vectors("b", "d", queries, items), again.pair_vectors("b", "d", queries, items), strict=True
    ):
        assert torch.equal(before, after)


def test_a_likelihood_ratio_looks_through_its_feature_maps():
    ratio, table = planted()
    maps = tuple(fit_scaling(rows, "standardised") for rows in table.rows)
    scaled = LikelihoodRatio(ratio.latent, maps)
    for name, rows, one in zip(("a", "b"), table.rows, maps, strict=True):
        assert torch.equal(scaled.vectors(name, rows, rows), ratio.vectors(name, one(rows), rows))


def test_sums_that_make_no_sense_are_refused():
    with pytest.raises(CalmrlError, match="needs parts with finite weights"):
        Sum(())
    with pytest.raises(CalmrlError, match="needs parts with finite weights"):
        Sum(((Cosine(3), float("nan")),))
    with pytest.raises(CalmrlError, match="unknown similarity 'dot'"):
        similarity.read({"kind": "dot"}, {})


def noisy_embeddings(table, seed, noise):
    """Embeddings of a model that knows something else about the items than PPCA does."""
    random = torch.Generator().manual_seed(seed)
    own = torch.randn(len(table), 8, generator=random, dtype=torch.float64)
    return [normalize(own + noise * torch.randn(own.shape, generator=random, dtype=torch.float64), dim=1) for _ in range(2)]


def summed(ratio, embeddings, weights, table):
    """The score of the sum written out in full: likelihood ratio (if any) plus weighted cosines."""

    def one_way(a, b, both):
        total = torch.zeros(len(table), len(table), dtype=torch.float64)
        if ratio is not None:
            total += ratio.latent.log_density_ratio(
                a, [b], *(ratio.latent.information_vector(j, table.rows[j]) for j in (a, b))
            )
        for weight, member in zip(weights, embeddings, strict=True):
            total += weight * (member[a] @ member[b].T)
        return total

    return mean_ranks(lambda a, b, both: (one_way(a, b, both), one_way(b, a, both)), table)


def test_weights_beside_a_likelihood_ratio_are_the_best_that_are_tried():
    ratio, table = planted()
    members = [noisy_embeddings(table, 1, 1.0), noisy_embeddings(table, 2, 1.5)]
    vectors = [ratio.vectors(name, rows, rows) for name, rows in zip(("a", "b"), table.rows, strict=True)]
    weights, score = choose_weights([(ratio, vectors), *((Cosine(8), member) for member in members)], table)
    assert weights[0] == 1.0
    first = {w: summed(ratio, members[:1], [w], table)["validation_mrr"] for w in BESIDE_LIKELIHOOD_RATIO}
    second = {w: summed(ratio, members, [weights[1], w], table)["validation_mrr"] for w in BESIDE_LIKELIHOOD_RATIO}
    assert first[weights[1]] == pytest.approx(max(first.values()))
    assert second[weights[2]] == pytest.approx(max(second.values()))
    assert score == pytest.approx(summed(ratio, members, weights[1:], table))
    assert score["validation_mrr"] > summed(ratio, [], [], table)["validation_mrr"]


def test_weights_beside_a_first_member_are_the_best_that_are_tried():
    _, table = planted()
    members = [noisy_embeddings(table, 1, 1.0), noisy_embeddings(table, 2, 1.5)]
    weights, score = choose_weights([(Cosine(8), member) for member in members], table)
    tried = {w: summed(None, members, [1.0, w], table)["validation_mrr"] for w in BESIDE_COSINE}
    assert weights[0] == 1.0
    assert tried[weights[1]] == pytest.approx(max(tried.values()))
    assert score["validation_mrr"] > validation_score(Cosine(8), members[0], table)["validation_mrr"]
