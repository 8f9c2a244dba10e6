"""The inner product of a query's and an item's vector is what the scorer says, whatever the item lacks and whoever asks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from calmrl_lab.ppca.latent_maps import LatentMaps
from calmrl_lab.scorers.base import make_scorer
from calmrl_lab.search.overlap_vectors import EvidenceVectors

NAMES = ("a", "b", "c", "d")


def model(draw, q):
    dims = draw.integers(1, 6, len(NAMES))
    weights = [torch.from_numpy(draw.normal(size=(d, q))) for d in dims]
    noise = draw.uniform(0.1, 2, len(NAMES))
    return LatentMaps(
        NAMES,
        tuple(torch.from_numpy(draw.normal(size=d)) for d in dims),
        tuple(w / s for w, s in zip(weights, noise, strict=True)),
        torch.stack([w.T @ w / s for w, s in zip(weights, noise, strict=True)]),
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 4), st.permutations(range(4)), st.integers(1, 4), st.sampled_from([None, 0.3, 12.5])
)
def test_products_of_vectors_are_the_scores(seed, q, order, count, weight):
    draw = np.random.default_rng(seed)
    maps, shown = model(draw, q), tuple(order[:count])
    mask = torch.from_numpy(draw.uniform(size=(9, count)) < 0.5)
    hidden = ~mask.unsqueeze(-1)
    evidence = torch.from_numpy(draw.normal(size=(9, count, q))).masked_fill(hidden, 0.0)
    embeddings = normalize(torch.from_numpy(draw.normal(size=(9, count, 5))), dim=2).masked_fill(hidden, 0.0)
    asked, asking = torch.from_numpy(draw.normal(size=(3, q))), normalize(torch.from_numpy(draw.normal(size=(3, 5))), dim=1)
    maker = EvidenceVectors.of_items(maps, weight, shown, mask)
    items = maker.items(evidence, embeddings, mask)
    options = {} if weight is None else {"weight": weight}
    for query in range(4):
        scorer = make_scorer(
            "overlap" if weight is None else "both", NAMES[query], [NAMES[j] for j in shown], maps=maps, **options
        )
        expected = scorer.score(torch.cat([asked, asking], dim=1), torch.cat([evidence, embeddings], dim=2), mask)
        found = maker.queries(query, asked, asking) @ items.T
        seen = mask.any(dim=1)
        assert found[:, seen].numpy() == pytest.approx(expected[:, seen].numpy(), rel=1e-9, abs=1e-9)
        assert bool((items[~seen] == 0).all())
