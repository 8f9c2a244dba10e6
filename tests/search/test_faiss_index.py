"""FAISS search: exact against a plain sort, approximate against exact, files that come back, requests that make no sense."""

import sys

import numpy as np
import pytest

from calmrl_lab.errors import CalmrlError, MissingExtraError, WorkFailedError
from calmrl_lab.search.faiss_index import Found, Index, build_index, build_index_of_blocks, exact_search, recall_against_exact

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
def test_an_index_comes_back_from_its_file(kind, tmp_path):
    gallery, queries = unit(500, 16, 0), unit(20, 16, 1)
    index = build_index(gallery, kind)
    index.write(tmp_path / "index.faiss")
    again = Index.read(tmp_path / "index.faiss", kind)
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
        (lambda: build_index(unit(5, 4, 0), "ivf", {"nlists": 2}), "no option 'nlists'; did you mean 'nlist'?"),
        (lambda: build_index(unit(5, 4, 0), "ivf", {"nlist": 0}), "nlist is 0"),
        (lambda: build_index(unit(5, 4, 0), "ivf", {"nlist": "five"}), "nlist is 'five', expected a whole number"),
        (lambda: build_index(unit(5, 4, 0), "hnsw", {"m": 2.5}), "m is 2.5, expected a whole number"),
        (lambda: build_index(unit(0, 4, 0)), "no items"),
        (lambda: build_index(np.full((2, 2), np.nan)), "gallery hold NaN"),
        (lambda: build_index(unit(5, 4, 0)).search(unit(1, 3, 0), 1), "dimension 4, the queries have 3"),
        (lambda: build_index(unit(5, 4, 0)).search(unit(1, 4, 0), 0), "k = 0"),
        (lambda: build_index(unit(5, 4, 0), "ivf").search(unit(1, 4, 0), 1, 0), "effort is 0"),
        (lambda: build_index(unit(5, 4, 0)).search(unit(1, 4, 0), 1, 3), "no effort to choose"),
        (lambda: build_index(unit(5, 4, 0), "hnsw", gpus=1), "CPU only"),
        (lambda: build_index(unit(5, 4, 0), gpus=99), "FAISS sees [0-9]+ GPUs, and 99 were asked for"),
        (lambda: build_index(unit(5, 4, 0)).on_gpus(99), "FAISS sees [0-9]+ GPUs, and 99 were asked for"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(call, said):
    with pytest.raises(CalmrlError, match=said.replace("?", r"\?")):
        call()


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "index.faiss").write_bytes(b"nothing of the kind")
    with pytest.raises(CalmrlError, match="damaged"):
        Index.read(tmp_path / "index.faiss", "flat")


def test_a_file_of_another_kind_is_refused(tmp_path):
    build_index(unit(50, 4, 0)).write(tmp_path / "index.faiss")
    with pytest.raises(CalmrlError, match="not of kind 'ivf'"):
        Index.read(tmp_path / "index.faiss", "ivf")


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_vectors_that_come_in_blocks_are_found_like_those_that_come_at_once(kind):
    gallery, queries = unit(500, 16, 0), unit(20, 16, 1)
    whole = build_index(gallery, kind).search(queries, 10)
    blocks = [gallery[:70], gallery[70:71], gallery[71:]]
    parts = build_index_of_blocks(500, 16, blocks, lambda rows: gallery[rows], kind).search(queries, 10)
    np.testing.assert_array_equal(whole.positions, parts.positions)
    exact, _ = exact_search(blocks, queries, 10)
    np.testing.assert_array_equal(exact.positions, build_index(gallery).search(queries, 10).positions)


@pytest.fixture
def two_gpus(monkeypatch):
    """The four functions of FAISS that only a GPU build has, over two CPU shards that are cut as FAISS cuts them."""

    class Options:
        shard = False

    def share_out(index, co, ngpu):
        assert co.shard
        if ngpu == 1:
            return faiss.clone_index(index)
        flat = isinstance(index, faiss.IndexFlat)
        shards = faiss.IndexShards(index.d, True, flat)
        parts = []
        for i in range(ngpu):
            if flat:
                part = faiss.IndexFlatIP(index.d)
                start, stop = i * index.ntotal // ngpu, (i + 1) * index.ntotal // ngpu
                part.add(index.reconstruct_n(start, stop - start))
            else:
                assert index.is_trained, "shards that are trained one by one may have different cells"
                part = faiss.clone_index(index)
                part.reset()
                index.copy_subset_to(part, faiss.InvertedLists.SUBSET_TYPE_ID_MOD, ngpu, i)
            parts.append(part)
            shards.add_shard(part)
        # What Python made must outlive the shards, which do not own it.
        shards.referenced_objects = parts
        return shards

    def put_together(shards):
        if not isinstance(shards, faiss.IndexShards):
            return faiss.clone_index(shards)
        first, *others = shards.referenced_objects
        whole = faiss.clone_index(first)
        for part in others:
            if isinstance(whole, faiss.IndexFlat):
                whole.add(part.reconstruct_n(0, part.ntotal))
            else:
                whole.merge_from(faiss.clone_index(part), 0)
        return whole

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", Options, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", share_out)
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", put_together, raising=False)


class TestOnGpus:
    """What a GPU changes is where vectors lie; the code around it is that of the CPU."""

    @pytest.mark.parametrize("gpus", [1, 2])
    @pytest.mark.parametrize("kind", ["flat", "ivf"])
    def test_building_searching_and_keeping(self, two_gpus, tmp_path, kind, gpus):
        gallery, queries = unit(900, 16, 0), unit(40, 16, 1)
        options = {"nlist": 12} if kind == "ivf" else {}
        here = build_index(gallery, kind, options)
        there = build_index(gallery, kind, options, gpus=gpus)
        assert (there.gpus, there.lists, len(there), there.dim) == (gpus, here.lists, 900, 16)
        for effort in (3, 12) if kind == "ivf" else (None,):
            np.testing.assert_array_equal(there.search(queries, 7, effort).positions, here.search(queries, 7, effort).positions)
        there.write(tmp_path / "index.faiss")
        back = Index.read(tmp_path / "index.faiss", kind)
        assert (back.gpus, back.lists) == (0, here.lists)
        for index in (back, there.on_cpu(), back.on_gpus(gpus)):
            np.testing.assert_array_equal(index.search(queries, 7, effort).positions, here.search(queries, 7, effort).positions)

    def test_the_limits_of_a_gpu(self, two_gpus):
        index = build_index(unit(3000, 4, 0), gpus=2)
        with pytest.raises(CalmrlError, match="at most 2048 items, got k = 2500"):
            index.search(unit(1, 4, 1), 2500)
        cells = build_index(unit(2500, 4, 0), "ivf", {"nlist": 2500}, gpus=1)
        assert cells.search(unit(1, 4, 1), 3, effort=2500).positions.shape == (1, 3)

    def test_no_room_is_one_sentence(self, two_gpus, monkeypatch):
        def full(*_, **__):
            raise RuntimeError("Error in cudaMalloc: out of memory\nat somewhere.cpp")

        monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", full)
        with pytest.raises(WorkFailedError, match="cannot put the index on 2 GPUs: Error in cudaMalloc: out of memory"):
            build_index(unit(50, 4, 0), gpus=2)


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match="faiss") as error:
        build_index(unit(5, 4, 0))
    assert "calmrl-lab[cpu]" in error.value.hint
