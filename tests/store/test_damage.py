"""Whatever happens to the files of a store is named by verify and refused by open."""

from __future__ import annotations

import contextlib
import json
import os
import re

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore, verify, write_store
from calmrl_lab.store.disk import integrity

from .conftest import COUNTS, IDS, parts


def refusal(path) -> str:
    with pytest.raises(CalmrlError) as caught:
        FeatureStore.open(path)
    return caught.value.message


def flip(path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << (position % 8)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("pristine") / "s.zarr", **parts())


def counted_files(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file() and p.name != "provenance.json")


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_one_flipped_bit_anywhere(pristine, data):
    """Only provenance.json may change without notice."""
    name = data.draw(st.sampled_from(counted_files(pristine)))
    original = (pristine / name).read_bytes()
    flip(pristine / name, data.draw(st.integers(0, 10**6)))
    try:
        message = refusal(pristine)
        # A flipped bit in digest.json or in the root attributes can show as the file that it speaks of.
        if name not in ("digest.json", "zarr.json"):
            assert name in message
            assert [damage.place for damage in verify(pristine)] == [name]
        else:
            with contextlib.suppress(CalmrlError):
                assert verify(pristine) != []
    finally:
        (pristine / name).write_bytes(original)


@pytest.mark.parametrize(
    "name", ["zarr.json", "digest.json", "ids/zarr.json", "mask/c/0/0", "features/audio/c/0/0", "failures.jsonl"]
)
@pytest.mark.parametrize("how", ["missing", "cut off", "longer"])
def test_missing_cut_off_and_longer_files(store_path, name, how):
    file = store_path / name
    if how == "missing":
        file.unlink()
    elif how == "cut off":
        file.write_bytes(file.read_bytes()[:-3])
    else:
        file.write_bytes(file.read_bytes() + b"xx")
    message = refusal(store_path)
    assert name in message
    assert verify(store_path)[0].place == name
    assert "\n" not in message


def test_verify_names_every_damaged_place(store_path):
    flip(store_path / "features/vision/c/0/0", 3)
    (store_path / "offsets/audio/c/0").unlink()
    (store_path / "features/notes.txt").write_text("hello")
    assert [(d.place, re.sub(r"\d+", "N", d.problem)) for d in verify(store_path)] == [
        ("features/vision/c/0/0", "the checksum differs: bytes were changed"),
        ("offsets/audio/c/0", "missing"),
        ("features/notes.txt", "not listed in digest.json: added after the store was written"),
    ]


def test_a_provenance_that_is_cut_off(store_path):
    (store_path / "provenance.json").write_text('{"when": "no')
    assert [damage.place for damage in verify(store_path)] == ["provenance.json"]
    assert len(FeatureStore.open(store_path)) == 5, "the features are as they were written"


def test_a_whole_store_has_no_damage(store_path):
    assert verify(store_path) == []


def without_digest(path):
    """As another Zarr tool would leave it: no checksums to lean on."""
    metadata = json.loads((path / "zarr.json").read_text())
    del metadata["attributes"]["checksums"]
    (path / "zarr.json").write_text(json.dumps(metadata))
    (path / "digest.json").unlink()
    return zarr.open_group(path, mode="r+")


def test_the_place_is_that_in_the_store_whatever_the_store_is_called(store_path, tmp_path, monkeypatch):
    (tmp_path / "features").mkdir()
    store_path.rename(tmp_path / "features" / "mask")
    put(without_digest(tmp_path / "features" / "mask")["offsets/audio"], 5, 9)
    monkeypatch.chdir(tmp_path)
    assert [damage.place for damage in verify("features/mask")] == ["offsets/audio"]


def put(array, key, value):
    array[key] = value


CONTRADICTIONS = {
    "mask says that 'audio' of item 'a/b' is missing, offsets/audio gives it 1 rows": lambda g: put(g["mask"], (0, 1), False),
    "mask says that 'vision' of item 'smile\U0001f642' is observed, reason gives 2": lambda g: put(g["reason"], (3, 0), 2),
    "mask says that 'vision' of item 'plain' is missing, reason gives 0": lambda g: put(g["reason"], (4, 0), 0),
    "offsets/vision does not run from 0 to the 3 rows": lambda g: put(g["offsets/vision"], 5, 7),
    "the ids are not unique": lambda g: put(g["ids"], 1, "a/b"),
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_contradictions_between_arrays(store_path, message):
    CONTRADICTIONS[message](without_digest(store_path))
    assert message in refusal(store_path)
    (damage,) = verify(store_path)
    assert message in damage.problem


def test_values_that_another_tool_got_wrong_are_found_by_verify(store_path):
    group = without_digest(store_path)
    group["features/vision"][1, 2] = np.nan
    group["split"][0] = "dev"
    split, vision = verify(store_path)
    assert (split.place, split.problem) == ("split", "values other than train, validation, test")
    assert (vision.place, vision.problem) == ("features/vision", f"NaN or infinite values, first at item {IDS[1]!r}")


def test_a_missing_feature_chunk_without_digest(store_path):
    without_digest(store_path)
    (store_path / "features/audio/c/0/0").unlink()
    assert refusal(store_path).endswith("the file features/audio/c/0/0 is missing")


def test_a_missing_shard(tmp_path, five):
    """Zarr reads what is not there as zeros: features that nobody ever measured."""
    path = write_store(tmp_path / "s.zarr", **five)
    group = without_digest(path)
    del group["features/vision"]
    group.create_array("features/vision", data=five["features"]["vision"], chunks=(1, 4), shards=(2, 4), compressors=None)
    assert_array_equal(FeatureStore.open(path).features("vision"), five["features"]["vision"])
    (path / "features/vision/c/1/0").unlink()
    assert refusal(path).endswith("the file features/vision/c/1/0 is missing")
    assert [damage.place for damage in verify(path)] == ["features/vision/c/1/0"]


ROOT = {
    "has format 'other'; expected 'calmrl-features'": {"format": "other"},
    "has version 99; this calmrl-lab reads version 1": {"version": 99},
    "the attribute 'dataset' is missing": {"dataset": None},
    "the attribute 'modalities' is missing or empty": {"modalities": []},
    "a modality is described by {'name': 'x'}": {"modalities": [{"name": "x"}]},
    "dimension 0; expected a positive": {"modalities": [{"name": "x", "encoder": "", "fingerprint": "", "dimension": 0}]},
}


@pytest.mark.parametrize("message", ROOT)
def test_root_attributes_that_are_not_ours(store_path, message):
    metadata = json.loads((store_path / "zarr.json").read_text())
    metadata["attributes"] |= ROOT[message]
    (store_path / "zarr.json").write_text(json.dumps(metadata))
    assert message in refusal(store_path)


def test_what_is_no_store_at_all(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("x")
    zarr.create_group(tmp_path / "foreign.zarr")
    expected = {
        "nowhere": "does not exist",
        "file": "is a file; a feature store is a directory",
        "empty": "is an empty directory",
        "other": "it has no zarr.json",
        "foreign.zarr": "has no attribute 'format'",
    }
    for name, message in expected.items():
        assert message in refusal(tmp_path / name)
        with pytest.raises(CalmrlError, match=re.escape(message)):
            verify(tmp_path / name)


def test_a_large_store_is_checked_file_by_file_on_first_read(store_path, monkeypatch):
    monkeypatch.setattr(integrity, "WHOLE_CHECK_BYTES", 0)
    monkeypatch.setattr("calmrl_lab.store.reader.WHOLE_CHECK_BYTES", 0)
    flip(store_path / "features/vision/c/0/0", 3)
    store = FeatureStore.open(store_path)
    assert store.features("audio").shape == (2, 3)
    for read in (lambda: store.features("vision"), lambda: store.rows("vision", [2])):
        with pytest.raises(CalmrlError, match="features/vision/c/0/0 is not what was written"):
            read()
    flip(store_path / "mask/c/0/0", 0)
    assert "mask/c/0/0" in refusal(store_path)


def test_a_symbolic_link_to_a_store_opens(store_path, tmp_path):
    os.symlink(store_path, tmp_path / "link")
    assert len(FeatureStore.open(tmp_path / "link")) == len(COUNTS)


def test_rows_and_modalities_that_do_not_exist(store_path):
    store = FeatureStore.open(store_path)
    with pytest.raises(CalmrlError, match="has rows 0 to 2, not 3"):
        store.rows("vision", [0, 3])
    with pytest.raises(CalmrlError, match="has rows 0 to 2, not -1"):
        store.rows("vision", [-1])
    for start, stop in ((0, 4), (-1, 2), (2, 1)):
        with pytest.raises(CalmrlError, match=f"has rows 0 to 3, not {start} to {stop}"):
            store.feature_range("vision", start, stop)
    # As row numbers these would be rows 1, 0, 0 and row 1.
    for wrong in ([True, False, False], [1.9]):
        with pytest.raises(CalmrlError, match="expected row numbers"):
            store.rows("vision", wrong)
    with pytest.raises(CalmrlError, match="no modality 'visoin'; did you mean 'vision'?"):
        store.features("visoin")


def test_metadata_made_to_do_harm(store_path):
    """A digest that points elsewhere, an array too large for any memory: refused before anything is read or reserved."""
    digest = json.loads((store_path / "digest.json").read_text())
    digest["files"]["../../etc/passwd"] = {"size": 1, "sha256": "0"}
    (store_path / "digest.json").write_text(json.dumps(digest))
    assert "lists files outside of the store" in refusal(store_path)
    without_digest(store_path)
    file = store_path / "features/vision/zarr.json"
    metadata = json.loads(file.read_text())
    for shape, chunk in (
        ([10**15, 4], [10**15, 4]),
        ([10**9, 4], [1, 4]),
        ([-3, 4], [3, 4]),
        ([3, 4], [0, 4]),
        (["3", 4], [3, 4]),
    ):
        metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"] = shape, chunk
        file.write_text(json.dumps(metadata))
        assert "features/vision/zarr.json has shape" in refusal(store_path)


def test_hidden_files_are_nobodys_data(store_path):
    (store_path / ".DS_Store").write_text("x")
    assert verify(store_path) == []
