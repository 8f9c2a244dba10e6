"""Features that are nearly one vector for all items are said to be, and how to mend it."""

import numpy as np
import pytest

from calmrl_lab.store import FeatureStore
from calmrl_lab.training.train import train_heads


@pytest.mark.parametrize(
    ("offset", "features", "said"), [(20, "scaled", True), (20, "standardised", False), (1, "scaled", False)]
)
def test_it_is_said_where_the_mean_is_nearly_all(tmp_path, capsys, offset, features, said):
    draw = np.random.default_rng(0)
    latent = draw.normal(size=(60, 3))
    arrays = {name: latent @ draw.normal(size=(3, 5)) + shift for name, shift in (("a", offset), ("b", 0), ("c", offset))}
    store = FeatureStore.from_arrays(arrays, path=tmp_path / "s.zarr")
    train_heads(store, "clip", features=features, run=tmp_path / "run", epochs=1, dim=4)
    note = "features of a and c point almost the same way for all items (their mean is more than 95% of their squared norm)"
    assert (note in " ".join(capsys.readouterr().err.split())) is said
