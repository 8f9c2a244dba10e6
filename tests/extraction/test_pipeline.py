"""The pipeline: the same bytes whatever happens on the way, and a reason for every gap."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.store import FeatureStore
from feature_extractors.extraction import extract


def contents(store):
    """Every file of a store but the provenance."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != "provenance.json"
    }


@pytest.fixture
def undisturbed(fakes, tmp_path):
    extract("fake", tmp_path / "undisturbed.zarr", workers=1, block_size=7)
    return contents(tmp_path / "undisturbed.zarr")


def test_the_store_has_what_the_manifest_says(fakes, tmp_path):
    fakes("one", "two|three", "", "absent", "  ", *["x"] * 10)
    summary = extract("fake", tmp_path / "s.zarr", workers=1)
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.mask[:, 0].tolist() == [True, True, False, False, False] + [True] * 10
    assert store.reason[:5, 0].tolist() == [0, 0, 1, 1, 1]
    assert store.offsets("caption").tolist()[:4] == [0, 1, 3, 3]
    assert bytes((np.asarray(store.features("caption")[1], dtype=np.float32) * 128).round().astype(np.uint8)).strip() == b"two"
    assert store.labels["parity"][:3].tolist() == ["0", "1", "0"]
    assert store.heads["fake_head"].shape == (2, 8)
    assert summary.missing["caption"]["absent by nature"] == 3
    assert not (tmp_path / "s.zarr.parts").exists()


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_workers_gives_the_same_bytes(undisturbed, tmp_path, workers):
    extract("fake", tmp_path / "s.zarr", workers=workers, block_size=7)
    assert contents(tmp_path / "s.zarr") == undisturbed


@pytest.mark.slow
def test_ray_gives_the_same_bytes(undisturbed, tmp_path):
    pytest.importorskip("ray", reason="the ray extra is not installed")
    extract("fake", tmp_path / "s.zarr", workers=2, block_size=7, engine="ray")
    assert contents(tmp_path / "s.zarr") == undisturbed


def start(out, *words):
    command = [sys.executable, "-c", "import sys; from feature_extractors.extraction import extract; from pathlib import Path\n"
               f"extract('fake', Path({str(out)!r}), workers=2, block_size=7)"]  # fmt: skip
    return subprocess.Popen(
        command, env={**os.environ, "FAKE_SECONDS": "0.02"}, start_new_session=True, stderr=subprocess.DEVNULL
    )


def kill_and_resume(out, moments):
    for moment in moments:
        process = start(out)
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if out.exists():
            break


def test_a_killed_run_resumes_to_the_same_bytes(undisturbed, tmp_path):
    out = tmp_path / "s.zarr"
    kill_and_resume(out, [4.0])
    if not out.exists():
        extract("fake", out, workers=2, block_size=7)
    assert contents(out) == undisturbed


@pytest.mark.slow
def test_twenty_random_kills_resume_to_the_same_bytes(undisturbed, tmp_path):
    generator = random.Random(0)
    for number in range(20):
        out = tmp_path / f"s{number}.zarr"
        kill_and_resume(out, [generator.uniform(0.2, 6.0)])
        if not out.exists():
            extract("fake", out, workers=2, block_size=7)
        assert contents(out) == undisturbed


def test_finished_blocks_are_not_done_again(fakes, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.02")
    out = tmp_path / "s.zarr"
    extract("fake", out, workers=1, block_size=3)
    kept = contents(out)

    import shutil

    shutil.rmtree(out)
    with pytest.raises(KeyboardInterrupt):
        interrupted(out, block_size=3)
    parts = sorted(path.name for path in (tmp_path / "s.zarr.parts").glob("*.part"))
    assert 0 < len(parts) < 10
    before = {name: (tmp_path / "s.zarr.parts" / name).stat().st_mtime_ns for name in parts}
    summary = extract("fake", out, workers=1, block_size=3)
    assert summary.resumed_blocks == len(before)
    assert contents(out) == kept


def interrupted(out, block_size=7):
    """A run in which the person presses Ctrl-C after two blocks."""
    import feature_extractors.extraction as pipeline

    original = pipeline._ENGINES["local"]

    def stops(*arguments):
        with contextlib.closing(original(*arguments)) as blocks:
            for number, count in enumerate(blocks):
                yield count
                if number == 1:
                    raise KeyboardInterrupt

    pipeline._ENGINES["local"] = stops
    try:
        extract("fake", out, workers=1, block_size=block_size)
    finally:
        pipeline._ENGINES["local"] = original


def test_a_failed_medium_is_a_gap_with_a_record(fakes, tmp_path):
    fakes("one", "bad", "nan", "odd", "good|bad", *["x"] * 60)
    extract("fake", tmp_path / "s.zarr", workers=1)
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.reason[:5, 0].tolist() == [0, 2, 2, 2, 0]
    records = [json.loads(line) for line in (tmp_path / "s.zarr" / "failures.jsonl").read_text().splitlines()]
    assert [(r["id"], r["code"]) for r in records if r["code"] != "nan_output"] == [
        ("item001", "decode_error"), ("item003", "decode_error"), ("item004", "decode_error"),
    ]  # fmt: skip
    assert [r["id"] for r in records if r["code"] == "nan_output"] == ["item002"]


def test_a_worker_that_dies_loses_only_the_medium_that_killed_it(fakes, tmp_path):
    fakes(*["x"] * 24, "crash", *["y"] * 5)
    extract("fake", tmp_path / "s.zarr", workers=2, block_size=6)
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.reason[:, 0].tolist() == [0] * 24 + [2] + [0] * 5
    assert store.mask[:, 1].all()
    (record,) = [json.loads(line) for line in (tmp_path / "s.zarr" / "failures.jsonl").read_text().splitlines()]
    assert (record["id"], record["modality"], record["code"]) == ("item024", "caption", "worker_crash")


def test_too_many_failures_end_with_an_error_after_everything_is_written(fakes, tmp_path):
    fakes(*["x"] * 5, *["bad"] * 5)
    with pytest.raises(WorkFailedError, match="5 of 20 media failed"):
        extract("fake", tmp_path / "s.zarr", workers=1)
    assert len(FeatureStore.open(tmp_path / "s.zarr")) == 10


def test_files_are_read_inside_the_media_folder_only(fakes, tmp_path):
    fakes("a", "b", "c", "d", *["x"] * 96)
    media = tmp_path / "media"
    media.mkdir()
    for number in range(4, 100):
        (media / f"{number}.txt").write_text("note")
    (tmp_path / "secret.txt").write_text("secret")
    (media / "0.txt").symlink_to(tmp_path / "secret.txt")
    (media / "1.txt").write_text("")
    extract("fake", tmp_path / "s.zarr", workers=1, media=media)
    records = {r["id"]: r for r in map(json.loads, (tmp_path / "s.zarr" / "failures.jsonl").read_text().splitlines())}
    assert {name: r["code"] for name, r in records.items()} == {
        "item000": "outside_media", "item001": "empty_file", "item002": "not_found", "item003": "not_found",
    }  # fmt: skip


def test_parts_of_another_plan_are_refused_by_what_differs(fakes, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "s.zarr")
    monkeypatch.setenv("FAKE_FINGERPRINT", "fake-2")
    with pytest.raises(CalmrlError, match="encoder of caption was 'fake fake-1', is 'fake fake-2'"):
        extract("fake", tmp_path / "s.zarr", workers=1, block_size=7)
    monkeypatch.setenv("FAKE_FINGERPRINT", "fake-1")
    with pytest.raises(CalmrlError, match="block size was '7', is '9'"):
        extract("fake", tmp_path / "s.zarr", workers=1, block_size=9)
    fakes("another")
    with pytest.raises(CalmrlError, match="manifest was"):
        extract("fake", tmp_path / "s.zarr", workers=1, block_size=7)


def test_two_runs_cannot_write_one_output(fakes, tmp_path):
    import fcntl

    folder = tmp_path / "s.zarr.parts"
    folder.mkdir()
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CalmrlError, match="another extraction is writing"):
            extract("fake", tmp_path / "s.zarr", workers=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "fakes"}, "did you mean 'fake'"),
        ({"preset": "fak"}, "no encoder preset 'fak'; did you mean 'fake'"),
        ({"preset": "caption=fak"}, "unknown encoder 'fak'"),
        ({"preset": "smell=fake"}, "no modality 'smell'"),
        ({"workers": 0}, "--workers must be at least 1"),
        ({"engine": "rai"}, "unknown engine 'rai'"),
        ({"device": "cuda:77"}, "cuda:77"),
    ],
)
def test_a_request_that_makes_no_sense_leaves_nothing(fakes, tmp_path, changes, said):
    out = tmp_path / "out" / "s.zarr"
    with pytest.raises(CalmrlError, match=said):
        extract(**{"dataset": "fake", "out": out, **changes})
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_an_existing_store_is_not_touched(fakes, tmp_path):
    extract("fake", tmp_path / "s.zarr", workers=1)
    with pytest.raises(CalmrlError, match="exists already"):
        extract("fake", tmp_path / "s.zarr", workers=1)
