"""Features without a mean: no modality is aligned back to front."""

import numpy as np
import pytest

from calmrl_lab.evaluation.evaluate import evaluate
from calmrl_lab.store import FeatureStore, import_features
from calmrl_lab.training.train import train_heads


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Four views of one latent vector, each about its mean."""
    folder, random = tmp_path_factory.mktemp("views"), np.random.default_rng(0)
    latent = random.standard_normal((800, 8))
    paths = {}
    for name in "abcd":
        view = latent @ random.standard_normal((8, 24)) + 0.3 * random.standard_normal((800, 24))
        paths[name] = str(folder / f"{name}.npy")
        np.save(paths[name], (view - view.mean(axis=0)).astype(np.float32))
    return FeatureStore.open(import_features(folder / "s.zarr", paths))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_no_direction_is_worse_than_a_random_order(store, tmp_path, seed):
    run = train_heads(
        store, objective="calmrl", imputer="ppca", scenario="pairs:0.25", seed=seed, run=tmp_path / "run", epochs=6, dim=16
    )
    table = evaluate(run).table()
    assert (table["median_rank"] < 130).all(), table[["query", "gallery", "median_rank"]]
