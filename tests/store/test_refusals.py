"""What write_store does not accept, and what it leaves behind then: nothing."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.runtime import atomic_folders as placing
from calmrl_lab.runtime import locks
from calmrl_lab.store import FeatureStore, ModalitySpec, write_store
from calmrl_lab.store.disk import files

from .conftest import parts


def with_value(five, modality, row, value):
    five["features"][modality] = five["features"][modality].astype(np.float64)
    five["features"][modality][row, 1] = value


ONE, FOUR = np.ones((1, 3)), np.ones((4, 3))
CASES = {
    "ids must be unique: 'a/b' is at positions 0 and 4": lambda p: p["ids"].__setitem__(4, "a/b"),
    "ids[2] is empty": lambda p: p["ids"].__setitem__(2, ""),
    "ids[2] holds a NUL character": lambda p: p["ids"].__setitem__(2, "x\0"),
    "ids[2] is not valid Unicode": lambda p: p["ids"].__setitem__(2, "\ud800"),
    "ids[2] has 5000 characters": lambda p: p["ids"].__setitem__(2, "x" * 5000),
    "ids[0] is 7; expected a string": lambda p: p["ids"].__setitem__(0, 7),
    "split has 4 entries; expected 5": lambda p: p["split"].pop(),
    "item 'a/b' has split 'dev'": lambda p: p["split"].__setitem__(0, "dev"),
    "label name '../x' cannot be stored": lambda p: p["labels"].__setitem__("../x", p["ids"]),
    "head name 'a/b' cannot be stored": lambda p: p["heads"].__setitem__("a/b", np.ones(3)),
    "head 'h' must be an array of finite": lambda p: p["heads"].__setitem__("h", np.array([np.nan])),
    "features are given for vision, audio; the modalities are": lambda p: p["features"].pop("caption"),
    "features of 'vision' are [3, 4]; the offsets and the dimension say [3, 5]": lambda p: p["modalities"].__setitem__(
        0, ModalitySpec("vision", "e", "f", 5)
    ),
    "the modality 'vision' is given twice": lambda p: p["modalities"].append(p["modalities"][0]),
    "features of 'audio' of item 'line\\nbreak' hold NaN": lambda p: with_value(p, "audio", 1, np.nan),
    "features of 'caption' of item 'a/b' hold NaN": lambda p: with_value(p, "caption", 1, -np.inf),
    "a feature of 'vision' of item 'smile\U0001f642' is 1e+06, too large for float16": lambda p: with_value(
        p, "vision", 2, 1e6
    ),
    "all become zero in float16": lambda p: p["features"].__setitem__("vision", np.full((3, 4), 1e-9)),
    "offsets of 'vision' must start at 0": lambda p: p["offsets"].__setitem__("vision", np.array([0, 2, 1, 2, 3, 3])),
    "offsets of 'vision' are int64 [5]": lambda p: p["offsets"].__setitem__("vision", np.arange(5)),
    "item 'plain' owns no row of 'vision', but its reason there is 0 (observed)": lambda p: p.__setitem__(
        "reason", np.where(np.arange(5)[:, None] == 4, 0, p["reason"])
    ),
    "1 of 5 items have no modality at all, the first is 'plain'": lambda p: p.__setitem__("reason", None),
    "the offsets of 'audio' say 2 rows of features; got 1": lambda p: p["features"].__setitem__("audio", iter([ONE])),
    "the offsets of 'audio' say 2 rows of features; got more": lambda p: p["features"].__setitem__("audio", iter([FOUR])),
    "the attribute name 'version' belongs to the store format": lambda p: p["attributes"].__setitem__("version", 2),
    "cannot be kept as JSON": lambda p: p["attributes"].__setitem__("x", object()),
}


@pytest.mark.parametrize("message", CASES)
def test_a_contradiction_is_named_and_leaves_nothing(tmp_path, five, message):
    CASES[message](five)
    with pytest.raises(CalmrlError) as caught:
        write_store(tmp_path / "s.zarr", **five)
    assert message in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "a+b", "x:y", "__x", "é", "x" * 65, "a."])
def test_modality_names_that_could_not_be_directories(name):
    with pytest.raises(CalmrlError, match="cannot be stored"):
        ModalitySpec(name, "e", "f", 3)


def test_an_item_whose_modalities_all_failed_is_kept(store_path):
    store = FeatureStore.open(store_path)
    assert not store.mask[4].any()
    assert store.reason[4].tolist() == [2, 2, 3]


def test_an_existing_store_is_replaced_only_when_asked(tmp_path, store_path):
    before = FeatureStore.open(store_path).digest
    with pytest.raises(CalmrlError, match="exists already"):
        write_store(store_path, **parts(seed=1))
    assert FeatureStore.open(store_path).digest == before
    write_store(store_path, **parts(seed=1), overwrite=True)
    assert FeatureStore.open(store_path).digest != before
    assert os.listdir(tmp_path) == ["five.zarr"]


def test_overwrite_never_removes_what_is_not_a_store(tmp_path, five):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(CalmrlError, match="is something else, so it is not overwritten"):
        write_store(home, **five, overwrite=True)
    assert (home / "thesis.tex").read_text() == "years of work"


def test_a_failing_overwrite_keeps_the_old_store(tmp_path, five, store_path):
    before = FeatureStore.open(store_path).digest
    with_value(five, "audio", 0, np.nan)
    with pytest.raises(CalmrlError, match="NaN"):
        write_store(store_path, **five, overwrite=True)
    assert FeatureStore.open(store_path).digest == before
    assert os.listdir(tmp_path) == ["five.zarr"]


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, WorkFailedError, "the disk is full"),
        (errno.EDQUOT, WorkFailedError, "the disk is full"),
        (errno.EROFS, CalmrlError, "cannot be written: read-only file system"),
        (errno.EIO, WorkFailedError, "could not be written"),
    ],
)
def test_a_disk_that_fails_midway_leaves_nothing(tmp_path, five, monkeypatch, number, kind, message):
    """Tests may run as root, whom permissions do not stop: the system's answer stands in for a real full disk."""
    calls = []

    def fsync(handle):
        calls.append(handle)
        if len(calls) == 9:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(kind, match=message):
        write_store(tmp_path / "s.zarr", **five)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("late", [False, True])
def test_a_writer_whose_new_directory_another_took_for_abandoned_makes_a_new_one(tmp_path, five, monkeypatch, late):
    """Between its creation and its lock a directory looks like one that a killed writer left."""
    made, mkdtemp, flock = [], placing.tempfile.mkdtemp, locks.fcntl.flock

    def taken(**options):
        made.append(mkdtemp(**options))
        if len(made) == 1 and not late:
            os.rmdir(made[0])
        return made[-1]

    def lock(handle, how):
        if late and len(made) == 1 and os.path.isdir(made[0]):
            os.rmdir(made[0])
        flock(handle, how)

    monkeypatch.setattr(placing.tempfile, "mkdtemp", taken)
    monkeypatch.setattr(locks.fcntl, "flock", lock)
    write_store(tmp_path / "s.zarr", **five)
    assert len(made) == 2
    assert os.listdir(tmp_path) == ["s.zarr"]


def writing_anew(path):
    return placing.new_directory(path, False, files.looks_like_store)


def test_what_a_killed_writer_left_is_removed_but_not_what_a_live_one_writes(tmp_path, five):
    (tmp_path / ".s.zarr.dead.partial" / "features").mkdir(parents=True)
    with pytest.raises(CalmrlError, match="exists already"), writing_anew(tmp_path / "s.zarr") as live:  # noqa: PT012
        (live / "zarr.json").write_text("{}")
        # A second writer of the same target is quicker; the first must not replace what it wrote.
        write_store(tmp_path / "s.zarr", **five)
        assert live.exists()
    assert os.listdir(tmp_path) == ["s.zarr"]
    assert len(FeatureStore.open(tmp_path / "s.zarr")) == 5
