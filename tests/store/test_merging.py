"""Merging: more items, or more modalities by id; whatever does not fit is named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore, ModalitySpec, offsets_of, verify, write_store
from calmrl_lab.store.convert import merge as merging
from calmrl_lab.store.convert.merge import merge

from .conftest import parts


def part(folder, name, ids, modalities, counts=None, **changes):
    counts = {m: np.ones(len(ids), dtype=int) for m in modalities} | (counts or {})
    random = np.random.default_rng(len(name) + len(ids))
    return write_store(
        folder / name,
        **{
            "dataset": name,
            "modalities": [ModalitySpec(m, f"encoder {m}", f"print {m}", 2) for m in modalities],
            "ids": ids,
            "split": ["train"] * len(ids),
            "features": {m: random.standard_normal((int(c.sum()), 2)) for m, c in counts.items()},
            "offsets": {m: offsets_of(c) for m, c in counts.items()},
            "licence": "CC0",
        }
        | changes,
    )


def rows_of(store, modality, item):
    number = store.ids.tolist().index(item)
    offsets = store.offsets(modality)
    return store.features(modality)[offsets[number] : offsets[number + 1]]


def test_the_two_halves_of_a_store_give_the_whole(tmp_path, five, store_path, monkeypatch):
    monkeypatch.setattr(merging, "CHUNK_ROWS", 2)
    whole = FeatureStore.open(store_path)
    halves = []
    for name, items in (("one", slice(0, 2)), ("two", slice(2, 5))):
        cut = {m: slice(int(whole.offsets(m)[items.start]), int(whole.offsets(m)[items.stop])) for m in whole.modalities}
        halves.append(
            write_store(
                tmp_path / name,
                **five
                | {key: five[key][items] for key in ("ids", "split", "group", "reason")}
                | {
                    "labels": {k: v[items] for k, v in five["labels"].items()},
                    "features": {m: five["features"][m][cut[m]] for m in cut},
                    "offsets": {m: offsets_of(np.diff(whole.offsets(m))[items]) for m in cut},
                    "failures": five["failures"] if name == "two" else [],
                },
            )
        )
    merged = FeatureStore.open(merge(halves, tmp_path / "merged"))
    assert merged.digest == whole.digest
    assert len(merged.provenance["merged"]) == 2


def test_modalities_are_joined_by_id(tmp_path):
    a = part(tmp_path, "a", ["x", "y", "z"], ["vision"], labels={"kind": ["1", "", "3"]})
    b = part(tmp_path, "b", ["z", "new", "x"], ["text"], {"text": np.array([2, 1, 0])}, labels={"kind": ["3", "9", ""]},
             reason=np.array([[0], [0], [2]], dtype=np.uint8), licence="MIT")  # fmt: skip
    merged = FeatureStore.open(merge([a, b], tmp_path / "m"))
    assert merged.ids.tolist() == ["x", "y", "z", "new"]
    assert merged.modalities == ("vision", "text")
    #                                vision text: x's text failed, y has none in b, new has no vision in a
    assert merged.reason.tolist() == [[0, 2], [0, 3], [0, 0], [3, 0]]
    assert merged.labels["kind"].tolist() == ["1", "", "3", "9"]
    assert (merged.dataset, merged.licence) == ("a; b", "CC0; MIT")
    for source, modality in ((a, "vision"), (b, "text")):
        store = FeatureStore.open(source)
        for item in store.ids.tolist():
            assert_array_equal(rows_of(merged, modality, item), rows_of(store, modality, item))
    assert verify(tmp_path / "m") == []


def refusal(paths, out) -> str:
    with pytest.raises(CalmrlError) as caught:
        merge(paths, out)
    assert not out.exists()
    return caught.value.message


@pytest.mark.parametrize("field", ["encoder", "fingerprint", "dtype"])
def test_features_of_different_encoders_are_not_mixed(tmp_path, five, store_path, field):
    five["modalities"][1] = dataclasses.replace(five["modalities"][1], **{field: "float32" if field == "dtype" else "other"})
    other = write_store(tmp_path / "other", **five | {"ids": list("abcde")})
    message = refusal([store_path, other], tmp_path / "m")
    assert f"modality 'audio' has {field}" in message
    assert "five.zarr" in message


def test_what_does_not_fit_is_named(tmp_path):
    a = part(tmp_path, "a", ["x", "y"], ["vision", "text"])
    same = part(tmp_path, "same", ["y", "z"], ["vision", "text"])  # its first is the last of a
    some = part(tmp_path, "some", ["z"], ["text", "audio"])
    split = part(tmp_path, "split", ["y"], ["audio"], split=["test"])
    label = part(tmp_path, "label", ["y"], ["audio"], labels={"kind": ["1"]})
    other = part(tmp_path, "other", ["y"], ["depth"], labels={"kind": ["2"]})
    group = part(tmp_path, "group", ["w"], ["vision", "text"], split=["test"], group=["x"])
    head = part(tmp_path, "head", ["h"], ["vision", "text"], heads={"p": np.ones(2)})
    head2 = part(tmp_path, "head2", ["i"], ["vision", "text"], heads={"p": np.zeros(2)})
    out = tmp_path / "m"
    assert "at least two" in refusal([a], out)
    assert "the item 'y' is in" in refusal([a, same], out)
    assert "share the modality 'text' but not all" in refusal([a, some], out)
    assert "split of item 'y' is 'test'" in refusal([a, split], out)
    assert "label 'kind' of item 'y' is '2'" in refusal([label, other], out)
    assert "the group 'x' would be in train and in test" in refusal([a, group], out)
    assert "the head 'p' of store" in refusal([head, head2], out)
    assert "does not exist" in refusal([a, tmp_path / "none"], out)


def test_merging_over_one_of_the_parts(tmp_path):
    a, b = part(tmp_path, "a", ["x"], ["vision"]), part(tmp_path, "b", ["y"], ["vision"])
    with pytest.raises(CalmrlError, match="exists already"):
        merge([a, b], a)
    assert FeatureStore.open(merge([a, b], a, overwrite=True)).ids.tolist() == ["x", "y"]


def test_extra_attributes_survive_where_all_agree(tmp_path):
    one = write_store(tmp_path / "one", **parts() | {"attributes": {"preset": "demo", "x": 1}})
    two = write_store(
        tmp_path / "two", **parts() | {"attributes": {"preset": "demo", "x": 2}, "ids": list("abcde"), "group": None}
    )
    assert FeatureStore.open(merge([one, two], tmp_path / "m")).attributes["preset"] == "demo"
    assert "x" not in FeatureStore.open(tmp_path / "m").attributes
