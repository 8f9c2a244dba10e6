"""The committed small store: whole, real, and what the encoders of today would write."""

import numpy as np
import pytest

from calmrl_lab.store import FeatureStore, verify


@pytest.fixture(scope="module")
def store(small_store):
    return FeatureStore.open(small_store)


def test_it_is_whole_small_and_carries_its_attribution(store, small_store):
    assert verify(small_store) == []
    assert sum(path.stat().st_size for path in small_store.rglob("*") if path.is_file()) < 2_000_000
    assert "CC BY-SA 4.0" in store.licence
    assert "OpenMoji" in store.attribution
    assert "CC BY-SA 4.0" in (small_store.parent / "ATTRIBUTION.md").read_text(encoding="utf-8")


def test_it_has_five_modalities_and_only_keywords_are_missing(store):
    assert store.dims == {"vision": 1280, "audio": 576, "caption": 384, "subtitle": 512, "keywords": 384}
    assert {split: int((store.split == split).sum()) for split in ("train", "validation", "test")} == {
        "train": 180, "validation": 45, "test": 75,
    }  # fmt: skip
    assert store.mask[:, :4].all()
    assert 0.3 < store.mask[:, 4].mean() < 0.5
    assert all(len(set(store.split[store.group == group])) == 1 for group in np.unique(store.group))
    assert len(set(store.labels["category"])) >= 8


@pytest.mark.parametrize(
    ("query", "gallery", "at_least"),
    [("caption", "vision", 4.0), ("caption", "subtitle", 10.0), ("audio", "caption", 2.0)],
)
def test_two_modalities_find_each_other_above_chance(store, query, gallery, at_least):
    """Recall@5 of unseen items under linear CCA (Hotelling 1936), as a multiple of what guessing gives."""
    train, test = store.split == "train", store.split != "train"
    left, right = (_whitened(store.features(m).astype(np.float64), train) for m in (query, gallery))
    u, strength, vt = np.linalg.svd(left[train].T @ right[train] / train.sum())
    queries, candidates = left[test] @ u[:, :40] * strength[:40], right[test] @ vt[:40].T * strength[:40]
    queries, candidates = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (queries, candidates))
    scores = queries @ candidates.T
    found = ((scores > np.diag(scores)[:, None]).sum(axis=1) < 5).mean()
    assert found > at_least * 5 / test.sum()


def _whitened(x, train, components=60, ridge=0.3):
    x = x - x[train].mean(axis=0)
    _, _, directions = np.linalg.svd(x[train] / np.sqrt(train.sum()), full_matrices=False)
    x = x @ directions[:components].T
    variances = x[train].var(axis=0)
    return x / np.sqrt(variances + ridge * variances.mean())


def test_a_damaged_copy_is_noticed(store, small_store, tmp_path):
    import shutil

    copy = shutil.copytree(small_store, tmp_path / "copy.zarr")
    chunk = copy / "features" / "vision" / "c" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[1000] ^= 1
    chunk.write_bytes(data)
    assert [found.place for found in verify(copy)]
