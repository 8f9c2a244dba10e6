"""FAISS search: exact against a plain sort, approximate against exact, files that come back, requests that make no sense."""

import sys

import numpy as np
import pytest

from calmrl_lab.errors import CalmrlError, MissingExtraError
from calmrl_lab.search import Found, Index, build_index, recall_against_exact

faiss = pytest.importorskip("faiss", reason="FAISS is not installed (extra cpu or gpu)")


def unit(n, d, seed):
    z = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def test_flat_search_is_a_plain_sort():
    gallery, queries = unit(200, 16, 0), unit(30, 16, 1)
    found = build_index(gallery).search(queries, 5)
    scores = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    np.testing.assert_array_equal(found.positions, np.argsort(-scores, axis=1)[:, :5])
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :5], rtol=1e-5)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_an_index_comes_back_from_its_file(tmp_path, kind):
    gallery, queries = unit(500, 16, 0), unit(20, 16, 1)
    index = build_index(gallery, kind)
    index.save(tmp_path / "index.faiss")
    again = Index.load(tmp_path / "index.faiss", kind)
    assert (len(again), again.dim) == (500, 16)
    for one, other in zip(again.search(queries, 10), index.search(queries, 10), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_search_finds_most_and_more_with_effort(kind):
    gallery, queries = unit(4000, 24, 0), unit(100, 24, 1)
    exact = build_index(gallery).search(queries, 10)
    index = build_index(gallery, kind)
    little, much = (recall_against_exact(index.search(queries, 10, effort), exact).mean() for effort in (1, 1000))
    assert little < much
    assert much > 0.99


def test_a_gallery_smaller_than_k_is_padded():
    found = build_index(unit(3, 8, 0)).search(unit(2, 8, 1), 5)
    assert found.positions.shape == (2, 5)
    assert (found.positions[:, 3:] == -1).all()
    assert (found.scores[:, 3:] == -np.inf).all()
    assert recall_against_exact(found, found).tolist() == [1, 1]


def test_recall_against_exact_by_hand():
    exact = Found(np.array([[0.9, 0.8, 0.8]]), np.array([[4, 2, 7]]))
    # 9 is a duplicate of 7: found by score. One of three is lost.
    assert recall_against_exact(Found(np.array([[0.9, 0.8, 0.1]]), np.array([[4, 9, 5]])), exact).tolist() == [
        pytest.approx(2 / 3)
    ]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: build_index(unit(5, 4, 0), "hnws"), "unknown index 'hnws'; did you mean 'hnsw'?"),
        (lambda: build_index(unit(5, 4, 0), "ivf", {"list": 2}), "no option 'list'; did you mean 'lists'?"),
        (lambda: build_index(unit(5, 4, 0), "ivf", {"lists": 0}), "lists is 0"),
        (lambda: build_index(unit(0, 4, 0)), "no items"),
        (lambda: build_index(np.full((2, 2), np.nan)), "gallery hold NaN"),
        (lambda: build_index(unit(5, 4, 0)).search(unit(1, 3, 0), 1), "dimension 4, the queries have 3"),
        (lambda: build_index(unit(5, 4, 0)).search(unit(1, 4, 0), 0), "k = 0"),
        (lambda: build_index(unit(5, 4, 0), "ivf").search(unit(1, 4, 0), 1, 0), "effort is 0"),
        (lambda: build_index(unit(5, 4, 0), "hnsw", gpus=1), "CPU only"),
        (lambda: build_index(unit(5, 4, 0), gpus=99), "99 GPUs asked for"),
        (lambda: Index.load("nowhere.faiss", "flat"), "there is no index"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(call, said):
    with pytest.raises(CalmrlError, match=said.replace("?", r"\?")):
        call()


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "index.faiss").write_bytes(b"nothing of the kind")
    with pytest.raises(CalmrlError, match="damaged"):
        Index.load(tmp_path / "index.faiss", "flat")


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match="faiss") as error:
        build_index(unit(5, 4, 0))
    assert "calmrl-lab[cpu]" in error.value.hint
