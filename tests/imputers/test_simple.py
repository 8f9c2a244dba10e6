"""The controls: mean, random row, none; and what every registered imputer must keep."""

import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers

SMALL_MODELS = {
    "ppca-private": {"latent_dim": 2, "private_dim": 1},
    "ppca-student": {"latent_dim": 2},
    "ppca-mixture": {"latent_dim": 2, "components": 2, "passes": 3},
}
SMALL_NETWORKS = {
    "autoencoder": {"epochs": 5},
    "mvae": {"epochs": 5, "hidden": 16, "latent_dim": 4},
    "mopoe": {"epochs": 5, "hidden": 16, "latent_dim": 4},
    "context": {"epochs": 5, "hidden": 16},
    "attention": {"epochs": 5, "hidden": 16},
}
SMALL = {
    "ppca": {"latent_dim": 2},
    "ppca-auto": {"latent_dim": 2, "folds": 2},
    "ppca-gradient": {"latent_dim": 2, "steps": 20},
    **SMALL_NETWORKS,
    **SMALL_MODELS,
}


def example(n=60, seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, 2))
    embeddings = [latent @ rng.normal(size=(2, d)) + 0.3 * rng.normal(size=(n, d)) for d in (5, 4, 6)]
    mask = rng.random((n, 3)) < 0.6
    mask[0] = True
    mask[1] = False
    return embeddings, mask


@pytest.fixture(params=sorted(imputers.names()))
def make(request):
    return lambda: imputers.get(request.param)(**SMALL.get(request.param, {}))


class TestEveryImputer:
    def test_observed_entries_are_untouched_and_gaps_are_finite(self, make):
        embeddings, mask = example()
        holes = [np.where(mask[:, [j]], v, np.nan) for j, v in enumerate(embeddings)]
        imputer = make().fit(holes, mask)
        for j, (before, after) in enumerate(zip(holes, imputer.impute(holes, mask), strict=True)):
            assert (after[mask[:, j]] == before[mask[:, j]]).all()
            assert np.isfinite(after).all() == imputer.fills or mask[:, j].all()

    def test_what_lies_under_the_mask_is_not_looked_at(self, make):
        embeddings, mask = example()
        other = [np.where(mask[:, [j]], v, 1e6 * j) for j, v in enumerate(embeddings)]
        results = [make().fit(values, mask).impute(values, mask) for values in (embeddings, other)]
        for j in range(3):
            if make().fills:
                assert (results[0][j] == results[1][j]).all()

    def test_the_same_call_gives_the_same_answer(self, make):
        embeddings, mask = example()
        imputer = make().fit(embeddings, mask)
        first, second = imputer.impute(embeddings, mask), imputer.impute(embeddings, mask)
        assert all((a == b).all() for a, b in zip(first, second, strict=True))

    def test_torch_in_torch_out(self, make):
        embeddings, mask = example()
        tensors = [torch.tensor(v, dtype=torch.float32) for v in embeddings]
        filled = make().fit(tensors, torch.tensor(mask)).impute(tensors, torch.tensor(mask))
        assert all(isinstance(v, torch.Tensor) and v.dtype == torch.float32 for v in filled)

    def test_a_saved_imputer_comes_back(self, make):
        embeddings, mask = example()
        imputer = make().fit(embeddings, mask)
        state = imputer.state()
        assert all(isinstance(value, np.ndarray) for value in state.values())
        loaded = type(imputer).from_state(state)
        for a, b in zip(loaded.impute(embeddings, mask), imputer.impute(embeddings, mask), strict=True):
            assert_allclose(a, b, rtol=1e-12)

    def test_predicted_error_is_zero_where_observed(self, make):
        embeddings, mask = example()
        imputer = make().fit(embeddings, mask)
        if hasattr(imputer, "predicted_error"):
            predicted = imputer.predicted_error(embeddings, mask)
            assert predicted.shape == mask.shape
            assert (predicted[mask] == 0).all()
            assert (predicted[~mask] > 0).all()

    def test_it_can_be_made_again_from_its_options(self, make):
        imputer = make()
        assert type(imputer)(**imputer.options()).options() == imputer.options()
        assert imputers.get(imputer.name) is type(imputer)

    def test_a_modality_never_observed_is_named(self, make):
        embeddings, mask = example()
        mask[:, 1] = False
        imputer = make()
        imputer.modalities = ("vision", "audio", "caption")
        with pytest.raises(CalmrlError, match="modality 'audio' is never observed"):
            imputer.fit(embeddings, mask)

    def test_an_unknown_option_is_refused(self, make):
        with pytest.raises(TypeError, match="colour"):
            type(make())(colour="red")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("knn", {"neighbours": 0}, "neighbours is 0, expected a whole number of at least 1"),
        ("knn", {"neighbours": "ten"}, "neighbours is 'ten'"),
        ("cca", {"components": 0}, "components is 0"),
        ("cca", {"shrinkage": -1}, "shrinkage is -1, expected a number of at least 0"),
        ("soft-impute", {"rank": -3}, "rank is -3"),
        ("soft-impute", {"rounds": True}, "rounds is True"),
        ("iterative-ridge", {"rounds": 0}, "rounds is 0"),
        ("iterative-ridge", {"strength": "auto"}, "strength is 'auto'"),
        ("autoencoder", {"hidden": 2.5}, "hidden is 2.5"),
        ("mvae", {"latent_dim": 0}, "latent_dim is 0"),
        ("mopoe", {"dropout": -0.1}, "dropout is -0.1"),
        ("context", {"epochs": 0}, "epochs is 0"),
        ("attention", {"hidden": 10}, "hidden is 10, expected a multiple of 4"),
        ("ppca-gradient", {"steps": 0}, "steps is 0"),
        ("ppca-gradient", {"latent_dim": "auto"}, "has no latent_dim 'auto'"),
        ("ppca-gradient", {"ridge": 2.0}, "ridge is an option of EM"),
        ("autoencoder", {"learning_rate": 0}, "learning_rate is 0, expected a number above 0"),
        ("autoencoder", {"dropout": 1.0}, "dropout is 1.0, expected a number of at least 0 and below 1"),
        ("group-mean", {"clusters": 0}, "clusters is 0"),
        ("random", {"seed": -1}, "seed is -1"),
        ("ppca", {"shared_noise": "maybe"}, "shared_noise is 'maybe', expected true or false"),
        ("ppca", {"accelerate": 1}, "accelerate is 1"),
        ("ppca", {"ridge": float("nan")}, "ridge is nan"),
        ("ppca-mixture", {"latent_dim": "auto"}, "latent_dim is 'auto'"),
        ("ppca-mixture", {"pooling": 0}, "pooling is 0, expected a number above 0"),
        ("ppca-student", {"passes": 0}, "passes is 0"),
        ("ppca-private", {"private_dim": 0}, "private_dim is 0"),
        ("ppca-auto", {"folds": 1}, "folds is 1, expected a whole number of at least 2"),
        ("ppca-auto", {"ridge": -1}, "ridge is -1"),
    ],
)
def test_options_that_make_no_sense_are_one_sentence(name, options, said):
    with pytest.raises(CalmrlError, match=said):
        imputers.get(name)(**options)


def test_mean_is_the_mean_and_predicts_the_variance():
    embeddings, mask = example()
    imputer = imputers.get("mean")().fit(embeddings, mask)
    filled, predicted = imputer.impute(embeddings, mask), imputer.predicted_error(embeddings, mask)
    for j, value in enumerate(embeddings):
        shown = value[mask[:, j]]
        assert_allclose(filled[j][~mask[:, j]], np.broadcast_to(shown.mean(axis=0), ((~mask[:, j]).sum(), value.shape[1])))
        assert_allclose(predicted[~mask[:, j], j], shown.var(axis=0).sum())


def test_random_draws_real_rows_by_its_seed():
    embeddings, mask = example()
    filled = imputers.get("random")(seed=1).fit(embeddings, mask).impute(embeddings, mask)
    other = imputers.get("random")(seed=2).fit(embeddings, mask).impute(embeddings, mask)
    for j, value in enumerate(embeddings):
        real = {row.tobytes() for row in value[mask[:, j]]}
        assert all(row.tobytes() in real for row in filled[j])
        assert not (filled[j] == other[j]).all()
    assert len({row.tobytes() for row in filled[0][~mask[:, 0]]}) > 5


def test_none_says_that_it_fills_nothing():
    embeddings, mask = example()
    imputer = imputers.get("none")().fit(embeddings, mask)
    assert imputer.fills is False
    assert all((a == b).all() for a, b in zip(imputer.impute(embeddings, mask), embeddings, strict=True))


def test_neighbours_are_the_same_with_and_without_faiss(monkeypatch):
    pytest.importorskip("faiss")

    rng = np.random.default_rng(0)
    embeddings, mask = [rng.normal(size=(80, d)) for d in (5, 3)], np.ones((80, 2), dtype=bool)
    hidden = mask.copy()
    hidden[::2, 1] = False
    with_faiss = imputers.get("knn")(neighbours=4).fit(embeddings, mask).impute(embeddings, hidden)
    monkeypatch.setitem(sys.modules, "faiss", None)
    without = imputers.get("knn")(neighbours=4).fit(embeddings, mask).impute(embeddings, hidden)
    assert_allclose(with_faiss[1], without[1], rtol=1e-12)
    # Item 0 itself is among the neighbours; the other three are the nearest by the first modality.
    nearest = np.argsort(np.square(embeddings[0] - embeddings[0][0]).sum(axis=1))[:4]
    assert_allclose(without[1][0], embeddings[1][nearest].mean(axis=0), rtol=1e-10)
