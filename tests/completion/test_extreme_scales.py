"""Features as large as 1e30 or as small as 1e-42 are filled as the same features of ordinary size are."""

import numpy as np
import pytest

from calmrl_lab.completion.fill_store import complete_store
from calmrl_lab.store import FeatureStore, import_features

OPTIONS = {"ppca": {"latent_dim": 3}, "ppca-gradient": {"latent_dim": 3, "steps": 30}, "knn": {}}


def store(folder, factor):
    random = np.random.default_rng(0)
    latent = random.standard_normal((60, 3))
    ids = np.array([f"i{n:02d}" for n in range(60)])
    paths = {}
    for name, dim in (("a", 6), ("b", 8), ("c", 5)):
        rows = latent @ random.standard_normal((3, dim)) + 0.3 * random.standard_normal((60, dim))
        shown = random.random(60) > 0.25
        paths[name] = folder / f"{name}-{factor:g}.npz"
        np.savez(paths[name], features=(rows[shown] * factor).astype(np.float32), ids=ids[shown])
    return import_features(folder / f"{factor:g}.zarr", paths)


@pytest.mark.slow
@pytest.mark.parametrize("imputer", OPTIONS)
def test_the_size_of_features_changes_nothing(imputer, tmp_path):
    filled = {}
    for factor in (1.0, 2.0**100, 2.0**-100, 1e-42):
        path = complete_store(store(tmp_path, factor), tmp_path / "filled.zarr", imputer, OPTIONS[imputer], overwrite=True).path
        whole = FeatureStore.open(path)
        filled[factor] = np.concatenate([whole.features(name).astype(np.float64) / factor for name in "abc"], axis=1)
    for factor, found in filled.items():
        # Numbers near 1e-42 have three digits in float32.
        tolerance = 1e-3 if factor != 1e-42 else 5e-2
        np.testing.assert_allclose(found, filled[1.0], atol=tolerance * np.abs(filled[1.0]).max())
