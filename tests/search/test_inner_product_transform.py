"""Inner products stay; lengths and units become equal, so that approximate search works."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmrl_lab.search.inner_product_transform import InnerProductTransform


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 6), st.integers(0, 6), st.integers(1, 5))
def test_inner_products_stay_and_items_have_one_length(seed, n, q, r):
    draw = np.random.default_rng(seed)
    items, queries = draw.normal(size=(n, r)) * 10.0 ** draw.integers(-4, 5, r), draw.normal(size=(q, r))
    items[:, draw.uniform(size=r) < 0.2] = 0
    balance = InnerProductTransform.of(items, queries)
    found = balance.queries(queries) @ balance.items(items).T
    size = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(items, axis=1)
    assert found.shape == (q, n)
    assert (np.abs(found - queries @ items.T) <= 1e-4 * size + 1e-30).all()
    lengths = np.linalg.norm(balance.items(items), axis=1)
    assert lengths == pytest.approx(np.broadcast_to(lengths[:1], lengths.shape), rel=1e-5)


def test_graphs_and_cells_find_what_unbalanced_vectors_hide():
    pytest.importorskip("faiss", reason="FAISS is not installed (extra cpu or gpu)")
    from calmrl_lab.search.faiss_index import build_index, recall_against_exact

    draw = np.random.default_rng(0)
    units = 10.0 ** draw.uniform(-1.5, 1.5, 16)
    latent = draw.normal(size=(3000, 4)) @ draw.normal(size=(4, 16)) + 0.3 * draw.normal(size=(3000, 16))
    # Queries are small where items are large; items differ in length.
    items = latent * units * np.exp(0.5 * draw.normal(size=(3000, 1)))
    queries = (latent[:100] + 0.1 * draw.normal(size=(100, 16))) / units
    balance = InnerProductTransform.of(items, queries)
    exact = build_index(items).search(queries, 10)
    for kind, effort in (("hnsw", 64), ("ivf", 12)):
        plain = recall_against_exact(build_index(items, kind).search(queries, 10, effort), exact).mean()
        balanced = build_index(balance.items(items), kind).search(balance.queries(queries), 10, effort)
        assert recall_against_exact(balanced, exact).mean() > max(0.95, plain)
