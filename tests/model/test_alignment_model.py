"""What a run learned: one object that comes back from one file, embeds stores, tables and arrays alike, and compares in every way it can."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from calmrl_lab.data.table import load_table
from calmrl_lab.errors import CalmrlError
from calmrl_lab.model.alignment_model import FILE, AlignmentModel
from calmrl_lab.model.feature_map import Chain, Identity, fit_scaling
from calmrl_lab.model.projection import Heads
from calmrl_lab.model.similarity import Cosine, LikelihoodRatio, Sum
from calmrl_lab.ppca.latent_maps import LatentMaps
from calmrl_lab.store import FeatureStore

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("vision", "caption", "keywords")


class Memory:
    """A folder of arrays in memory."""

    path = Path("memory")

    def __init__(self):
        self.files = {}

    def write_tensors(self, name, tensors, metadata):
        self.files[name] = ({key: np.array(value) for key, value in tensors.items()}, dict(metadata))

    def read_tensors(self, name):
        return self.files[name]


@pytest.fixture(scope="module")
def table(small_store):
    return load_table(FeatureStore.open(small_store), NAMES)


def ratio_over(dims, q=4):
    generator = torch.Generator().manual_seed(1)
    maps = tuple(torch.randn(d, q, generator=generator, dtype=torch.float64) / d for d in dims)
    precisions = torch.stack([w.T @ w for w in maps])
    centres = tuple(torch.zeros(d, dtype=torch.float64) for d in dims)
    return LikelihoodRatio(LatentMaps(NAMES, centres, maps, precisions), tuple(Identity(d) for d in dims))


@pytest.fixture(scope="module")
def model(table):
    maps = tuple(Chain((fit_scaling(rows, "standardised"), Identity(rows.shape[1]))) for rows in table.rows)
    heads = Heads({m: one.dim for m, one in zip(NAMES, maps, strict=True)}, 8, "mlp", seed=3).eval()
    cosine, ratio = Cosine(8), ratio_over(list(table.dims.values()))
    return AlignmentModel(dict(table.dims), maps, heads, Sum(((ratio, 1.0), (cosine, 3.0))))


def test_a_model_comes_back_from_its_file(model, table):
    folder = Memory()
    model.save(folder)
    assert list(folder.files) == [FILE]
    again = AlignmentModel.load(folder)
    assert (again.modalities, dict(again.dims)) == (NAMES, dict(table.dims))
    for name in ("cosine", "likelihood-ratio", "sum"):
        before, after = (one.compared_by(name).represent(table) for one in (model, again))
        assert torch.equal(before.items, after.items)
        assert all(torch.equal(a, b) for a, b in zip(before.rows, after.rows, strict=True))
    second = Memory()
    again.save(second)
    assert second.files[FILE][1] == folder.files[FILE][1]


def test_what_a_sum_compares_is_what_its_parts_compare_side_by_side(model, table):
    whole, ratio, cosine = (model.compared_by(name).represent(table).items for name in ("sum", "likelihood-ratio", "cosine"))
    assert torch.equal(whole, torch.cat([ratio, cosine.double()], dim=2))
    assert torch.equal(model.embed(table).items, cosine)
    norms = cosine.norm(dim=2)
    assert torch.allclose(norms[table.mask], torch.ones(int(table.mask.sum())), atol=1e-5)
    assert bool((norms[~table.mask] == 0).all())


def test_stores_tables_and_arrays_are_embedded_alike(model, small_store):
    store = FeatureStore.open(small_store)
    of_store = model.embed(store, "test")
    test = load_table(store, NAMES).select(np.flatnonzero(store.split == "test"))
    of_table = model.embed(test)
    assert torch.equal(of_store.items, of_table.items)
    assert set(of_store.labels) == set(store.labels)
    arrays = {
        name: rows.masked_fill(~test.mask[:, [j]], torch.nan).numpy()
        for j, (name, rows) in enumerate(zip(NAMES, test.first_rows(), strict=True))
    }
    of_arrays = model.embed(arrays)
    assert torch.equal(of_arrays.mask, test.mask)
    assert torch.allclose(of_arrays.items, of_table.items, atol=1e-6)
    alone = model.embed({"caption": arrays["caption"]})
    assert alone.mask.sum(dim=0).tolist() == [0, int(test.mask[:, 1].sum()), 0]
    with pytest.raises(CalmrlError, match="no items in split 'tset'"):
        model.embed(store, "tset")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"captoin": np.zeros((2, 3))}, "no modality 'captoin'; did you mean 'caption'"),
        ({}, "no items to embed"),
        ({"caption": np.zeros((2, 3))}, r"features of 'caption' have shape \[2, 3\], expected \[items, 384\]"),
        ({"caption": np.zeros(384)}, r"have shape \[384\], expected \[items, 384\]"),
        ({"caption": np.zeros((2, 384)), "vision": np.zeros((3, 1280))}, "'caption' have 2 items, those of another modality 3"),
        ({"caption": [["a"]]}, "features of 'caption' are no array of numbers"),
        ({"caption": np.ma.array(np.zeros((2, 384)), mask=np.arange(768).reshape(2, 384) == 1)}, "hold NaN or infinity"),
        ({"caption": None}, "no items to embed"),
        ([np.zeros((2, 384))], "items to embed are a list, expected a store or a dict"),
        (None, "items to embed are a NoneType"),
        ({"caption": np.where(np.arange(384) == 1, np.nan, np.zeros((2, 384)))}, "hold NaN or infinity"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(model, arrays, said):
    with pytest.raises(CalmrlError, match=said):
        model.embed(arrays)


def test_pairs_are_compared_by_the_similarity_of_the_model(model, table):
    queries, candidates = table.rows[1][:5], table.rows[0][:7]
    left, right = model.compared_by("cosine").pair_vectors("caption", "vision", queries, candidates)
    assert torch.equal(left, model.project("caption", queries))
    assert (left @ right.T).shape == (5, 7)
    with pytest.raises(CalmrlError, match="no modality 'smell'"):
        model.pair_vectors("smell", "vision", queries, candidates)


def test_a_model_says_what_it_cannot_compare_by(model):
    plain = AlignmentModel(model.dims, model.feature_maps, model.projection, Cosine(8))
    with pytest.raises(CalmrlError, match="has no PPCA of its features"):
        plain.compared_by("likelihood-ratio")
    with pytest.raises(CalmrlError, match="chose no weight for similarity 'sum'"):
        plain.compared_by("sum")
    with pytest.raises(CalmrlError, match="no similarity 'both'") as refused:
        plain.compared_by("both")
    assert refused.value.hint == "it is now called sum"
    beside = AlignmentModel(
        model.dims, model.feature_maps, model.projection, Cosine(8), (ratio_over(list(model.dims.values())),)
    )
    assert beside.compared_by("likelihood-ratio").compared_by("cosine").compared_by("likelihood-ratio").similarity.dim == 4


def test_a_file_that_holds_no_model_is_refused():
    folder = Memory()
    folder.write_tensors(FILE, {}, {})
    with pytest.raises(CalmrlError, match="holds no model of this version"):
        AlignmentModel.load(folder)


def _imports(module):
    """The modules of the package that importing `module` loads, itself included."""
    waiting, found = [module], set()
    while waiting:
        name = waiting.pop()
        path = ROOT / name.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in found or not file.is_file():
            continue
        found.add(name)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("calmrl_lab"):
                waiting += [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
    return found


def test_a_new_process_can_read_every_kind_that_can_be_saved():
    kinds = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "calmrl_lab" / "model").rglob("*.py")
        if re.search(r"^@(similarity_kind|feature_map_kind)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(kinds) >= 3
    assert set(kinds) <= _imports("calmrl_lab.model.alignment_model")
