"""Runs that are killed, stopped, repeated, or in each other's way."""

import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from extraction.stores import contents, failures, parts, signalled

from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.runtime.atomic_folders import recover
from calmrl_lab.store import FeatureStore
from feature_extractors.extraction import extract


@pytest.fixture
def media(fakes, notes):
    return notes(*(f"file {i}" for i in range(30)))


def run(out, media, workers=1):
    return extract("fake", out, media=media, workers=workers, block_size=3)


@pytest.fixture
def undisturbed(media, tmp_path):
    run(tmp_path / "undisturbed.zarr", media)
    return contents(tmp_path / "undisturbed.zarr")


def start(out, media, slow, more="workers=2"):
    """The same run in a process of its own."""
    code = (
        "import sys; from feature_extractors.extraction import extract\n"
        f"extract('fake', {str(out)!r}, media={str(media)!r}, block_size=3, {more})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "FAKE_SECONDS": str(slow)},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )


def test_a_killed_run_resumes_to_the_same_bytes(undisturbed, media, tmp_path):
    out = tmp_path / "s.zarr"
    process = start(out, media, 0.01)
    while len(parts(out)) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not out.exists()
    assert run(out, media, workers=2).resumed_blocks >= 3
    assert contents(out) == undisturbed


def kill_at(process, out, finished, seconds):
    """Kill a run `seconds` after it has `finished` blocks (or is through)."""
    while len(parts(out)) < finished and not out.exists() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_random_kills_resume_to_the_same_bytes(undisturbed, media, tmp_path):
    """Moments are drawn over a whole run of 1, 2 or 4 workers: start-up, blocks, joining, tidying up."""
    generator = random.Random(0)
    unfinished = 0
    for number in range(12):
        out = tmp_path / f"s{number}.zarr"
        process = start(out, media, 0.03, f"workers={(1, 2, 4)[number % 3]}")
        finished = generator.randrange(11)
        kill_at(process, out, finished, generator.uniform(0, 0.4 if finished in (0, 10) else 0.05))
        unfinished += not out.exists()
        if not out.exists() or out.with_name(out.name + ".parts").exists():
            run(out, media, workers=(2, 4, 1)[number % 3])
        assert contents(out) == undisturbed
        # A lock file of a killed run is only a file: nobody holds it.
        leftovers = {path.name for path in tmp_path.glob(f"*{number}.zarr*")} - {out.name, f"{out.name}.lock"}
        assert leftovers <= {f"s1{number}.zarr"}
    assert unfinished >= 6


@pytest.mark.slow
@pytest.mark.parametrize(("finished", "engine"), [(1, "ray"), (4, "local"), (8, "ray")])
def test_a_killed_run_on_ray_resumes_to_the_same_bytes(undisturbed, media, tmp_path, finished, engine):
    pytest.importorskip("ray", reason="the ray extra is not installed")
    out = tmp_path / "s.zarr"
    kill_at(start(out, media, 0.03, "workers=2, engine='ray'"), out, finished, 0.02)
    assert not out.exists()
    summary = extract("fake", out, media=media, workers=2, block_size=3, engine=engine)
    assert summary.resumed_blocks >= finished
    assert contents(out) == undisturbed


@pytest.mark.slow
def test_killed_workers_are_replaced(undisturbed, media, tmp_path, monkeypatch):
    """Somebody kills every worker there is, again and again: the run goes on, and nothing is lost."""
    out = tmp_path / "s.zarr"
    process = start(out, media, 0.02)
    for finished in (1, 3):
        while len(parts(out)) < finished and process.poll() is None:
            time.sleep(0.005)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
    assert process.wait() == 0
    assert contents(out) == undisturbed


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_run(media, tmp_path):
    process = start(tmp_path / "s.zarr", media, 0.2)
    while not parts(tmp_path / "s.zarr"):
        time.sleep(0.01)
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    grandchildren = [
        child
        for worker in listed
        for child in subprocess.run(["pgrep", "-P", worker], capture_output=True, text=True).stdout.split()
    ]
    assert listed
    assert grandchildren
    process.kill()
    process.wait()
    until = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in [*listed, *grandchildren]):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), pytest.param(signal.SIGTERM, SystemExit, marks=pytest.mark.slow)]
)
def test_a_wish_to_stop_finishes_the_block_under_way(undisturbed, media, tmp_path, monkeypatch, number, raised, capfd):
    monkeypatch.setenv("FAKE_SECONDS", "0.02")
    out = tmp_path / "s.zarr"
    signalled(out, number)
    before = signal.getsignal(number)
    with pytest.raises(raised) as caught:
        run(out, media)
    assert signal.getsignal(number) is before
    if raised is SystemExit:
        assert caught.value.code == 143
    assert "the same command goes on from there" in " ".join(capfd.readouterr().err.split())
    finished = {path.name: path.stat().st_mtime_ns for path in parts(out)}
    assert 2 <= len(finished) < 10
    summary = run(out, media)
    assert summary.resumed_blocks == len(finished)
    assert contents(out) == undisturbed


def stopped(out, media, **environment):
    signalled(out)
    with pytest.raises(KeyboardInterrupt):
        run(out, media)


def test_parts_of_another_plan_are_refused_by_what_differs(fakes, media, tmp_path, monkeypatch):
    out = tmp_path / "s.zarr"
    monkeypatch.setenv("FAKE_SECONDS", "0.02")
    stopped(out, media)
    monkeypatch.setenv("FAKE_SECONDS", "0")
    monkeypatch.setenv("FAKE_FINGERPRINT", "fake-2")
    with pytest.raises(CalmrlError, match="encoder of caption was 'fake fake-1', is 'fake fake-2'"):
        run(out, media)
    monkeypatch.setenv("FAKE_FINGERPRINT", "fake-1")
    with pytest.raises(CalmrlError, match="block size was '3', is '9'"):
        extract("fake", out, media=media, workers=1, block_size=9)
    with pytest.raises(CalmrlError, match="encoder of note was 'fake fake-1', is 'None'|encoder of note was"):
        extract("fake", out, "caption=fake", media=media, workers=1, block_size=3)
    fakes(*(f"text{i}" for i in range(29)), "another")
    with pytest.raises(CalmrlError, match="item 'item029' has changed"):
        run(out, media)
    fakes(*(f"text{i}" for i in range(31)))
    with pytest.raises(CalmrlError, match="was of 30 items, is of 31; item 'item030' is new"):
        run(out, media)
    fakes(*(f"text{i}" for i in range(29)))
    with pytest.raises(CalmrlError, match="was of 30 items, is of 29; item 'item029' is gone"):
        run(out, media)


@pytest.mark.slow
def test_a_damaged_part_is_made_again(undisturbed, media, tmp_path, monkeypatch):
    out = tmp_path / "s.zarr"
    monkeypatch.setenv("FAKE_SECONDS", "0.02")
    stopped(out, media)
    monkeypatch.setenv("FAKE_SECONDS", "0")
    first, second, *_ = parts(out)
    data = bytearray(first.read_bytes())
    data[-3] ^= 1
    first.write_bytes(data)
    second.write_bytes(b"")
    run(out, media)
    assert contents(out) == undisturbed


@pytest.mark.slow
def test_a_disk_that_keeps_nothing_is_given_up(media, tmp_path, monkeypatch):
    from feature_extractors.shards import join as joining

    read = joining.Part.read
    monkeypatch.setattr(joining.Part, "read", lambda path: None if path.name == "000004.part" else read(path))
    with pytest.raises(WorkFailedError, match="000004.part' was damaged each of the 3 times it was written"):
        run(tmp_path / "s.zarr", media)
    assert len(parts(tmp_path / "s.zarr")) == 9


def test_a_damaged_plan_is_not_guessed(media, tmp_path):
    out = tmp_path / "s.zarr"
    folder = tmp_path / "s.zarr.parts"
    folder.mkdir()
    (folder / "plan.json").write_text('{"settings"')
    with pytest.raises(CalmrlError, match="plan.json' is damaged"):
        run(out, media)


@pytest.mark.slow
def test_a_run_killed_while_it_tidied_up_is_finished_by_the_next(undisturbed, media, tmp_path, monkeypatch):
    from feature_extractors.shards.folder import PartsFolder

    out = tmp_path / "s.zarr"
    remove = PartsFolder.remove
    monkeypatch.setattr(PartsFolder, "remove", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(out, media)
    monkeypatch.setattr(PartsFolder, "remove", remove)
    assert out.exists()
    assert parts(out)
    summary = run(out, media)
    assert (summary.items, summary.resumed_blocks) == (30, 10)
    assert not (tmp_path / "s.zarr.parts").exists()
    assert contents(out) == undisturbed
    with pytest.raises(CalmrlError, match="exists already"):
        run(out, media)


@pytest.mark.slow
@pytest.mark.parametrize("repaired", [False, True])
def test_a_retry_killed_while_it_tidied_up_is_finished_by_the_next(media, tmp_path, monkeypatch, repaired):
    from feature_extractors.shards.folder import PartsFolder

    out = tmp_path / "s.zarr"
    for number in (3, 28):
        (media / f"{number}.txt").write_text("bad")
    extract("fake", out, media=media, workers=1, block_size=3)
    (media / "3.txt").write_text("file 3")
    if repaired:
        (media / "28.txt").write_text("file 28")
    with monkeypatch.context() as patch:
        patch.setattr(PartsFolder, "remove", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            extract("fake", out, media=media, workers=1, block_size=3, retry_failed=True)
    assert parts(out)
    completed = contents(out)
    extract("fake", out, media=media, workers=1, block_size=3, retry_failed=True)
    assert contents(out) == completed
    assert failures(out) == ({} if repaired else {"item028": "decode_error"})
    assert not (tmp_path / "s.zarr.parts").exists()


def test_a_retry_killed_after_it_replaced_the_store_leaves_nothing_to_the_next(media, tmp_path):
    """The new store is in place, the old one is half removed: nothing is left to do but to remove the rest."""
    out = tmp_path / "s.zarr"
    run(out, media)
    shutil.copytree(out, tmp_path / ".s.zarr.dead.partial")
    completed = contents(out)
    extract("fake", out, media=media, workers=1, block_size=3, retry_failed=True)
    assert contents(out) == completed
    assert not (tmp_path / ".s.zarr.dead.partial").exists()


@pytest.mark.slow
def test_retries_killed_at_random_lose_nothing(media, tmp_path):
    """Whenever it is killed, the store is the old one or the completed one, and the next retry completes it."""
    for number in range(0, 30, 4):
        (media / f"{number}.txt").unlink()
    how = {"media": media, "workers": 2, "block_size": 3, "max_failures": 1.0}
    extract("fake", tmp_path / "old.zarr", **how)
    for number in range(0, 30, 4):
        (media / f"{number}.txt").write_text(f"file {number}")
    shutil.copytree(tmp_path / "old.zarr", tmp_path / "new.zarr")
    extract("fake", tmp_path / "new.zarr", retry_failed=True, **how)
    old, new = contents(tmp_path / "old.zarr"), contents(tmp_path / "new.zarr")
    assert old != new
    generator = random.Random(1)
    killed = 0
    for number in range(10):
        out = tmp_path / f"s{number}.zarr"
        shutil.copytree(tmp_path / "old.zarr", out)
        process = start(out, media, 0.03, "workers=2, retry_failed=True")
        # Eight media in three blocks. At the end of a retry the store is replaced and the parts are removed.
        while len(parts(out)) < number % 4 and process.poll() is None:
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.1))
        process.kill()
        killed += process.wait() != 0
        recover(out)  # as every command that writes there does
        assert contents(out) in (old, new)
        extract("fake", out, retry_failed=True, **how)
        assert contents(out) == new
        assert {path.name for path in tmp_path.glob(f"*s{number}.zarr*")} <= {out.name, f"{out.name}.lock"}
    assert killed >= 5


def test_two_runs_cannot_write_one_output(media, tmp_path):
    with open(tmp_path / "s.zarr.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 77 on somewhere\n")
        lock.flush()
        with pytest.raises(CalmrlError, match=r"another extraction is writing '.*' \(process 77 on somewhere\)"):
            run(tmp_path / "s.zarr", media)
    run(tmp_path / "s.zarr", media)
    assert not (tmp_path / "s.zarr.lock").exists()


def test_a_disk_without_locks_is_not_taken_for_another_run(media, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    nowhere = SimpleNamespace(flock=refuse, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB)
    monkeypatch.setattr("feature_extractors.shards.folder.fcntl", nowhere)
    with pytest.raises(CalmrlError, match=r"s.zarr.lock' cannot be locked: no locks available"):
        run(tmp_path / "new" / "s.zarr", media)
    assert not (tmp_path / "new").exists()


def test_a_disk_that_is_full_from_the_start_is_left_as_it_was(media, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("feature_extractors.shards.folder.json.dump", full)
    with pytest.raises(WorkFailedError, match="the disk is full"):
        run(tmp_path / "new" / "s.zarr", media)
    assert not (tmp_path / "new").exists()


def test_what_could_not_be_replaced_in_the_end_is_refused_at_the_beginning(media, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    run(tmp_path / "s.zarr", media)
    (tmp_path / "link").symlink_to(tmp_path / "s.zarr")
    before = sorted(tmp_path.iterdir())
    for name, options in (("mine", {"overwrite": True}), ("link", {"overwrite": True}), ("link", {"retry_failed": True})):
        with pytest.raises(CalmrlError, match="is something else, so it is not overwritten"):
            extract("fake", tmp_path / name, media=media, workers=1, **options)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CalmrlError, match="'.' is not the name of a store"):
        extract("fake", ".", media=media, workers=1)
    assert sorted(tmp_path.iterdir()) == before


def test_an_output_that_cannot_be_written_is_one_sentence(media, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CalmrlError, match="could not be written|cannot be written"):
        run(tmp_path / "file" / "s.zarr", media)


def test_only_failed_media_are_retried(undisturbed, media, tmp_path, monkeypatch):
    out = tmp_path / "s.zarr"
    (media / "3.txt").write_text("bad")
    (media / "4.txt").unlink()
    (media / "28.txt").write_text("bad")
    with pytest.raises(WorkFailedError):
        extract("fake", out, media=media, workers=1, block_size=3, max_failures=0.0)
    before = {m: FeatureStore.open(out).features(m) for m in ("caption", "note")}
    assert failures(out) == {"item003": "decode_error", "item004": "not_found", "item028": "decode_error"}
    (media / "3.txt").write_text("file 3")
    (media / "4.txt").write_text("file 4")
    summary = extract("fake", out, media=media, workers=1, retry_failed=True)
    store = FeatureStore.open(out)
    assert failures(out) == {"item028": "decode_error"}
    assert summary.failed_media == 1
    assert store.mask[:, 1].tolist() == [i != 28 for i in range(30)]
    # What had not failed is untouched, and every feature is at its own item.
    assert np.array_equal(store.features("caption"), before["caption"])
    old = np.delete(np.arange(30), [3, 4, 28])
    assert np.array_equal(store.rows("note", [i - (i > 28) for i in old]), before["note"])
    letters = np.asarray(store.features("note"), np.float32)[3:5]
    assert [bytes(((row - letters[0, 0] + ord("f") / 128) * 128).round().astype(np.uint8)).strip() for row in letters] == [
        b"file 3",
        b"file 4",
    ]
    (media / "28.txt").write_text("file 28")
    extract("fake", out, media=media, workers=1, retry_failed=True)
    assert FeatureStore.open(out).mask.all()
    assert FeatureStore.open(out).failures() == []
    unchanged = contents(out)
    extract("fake", out, media=media, workers=1, retry_failed=True)
    assert contents(out) == unchanged


@pytest.mark.slow
def test_a_failed_caption_among_others_is_retried(fakes, tmp_path):
    fakes("one|bad|three", "x", "y")
    extract("fake", tmp_path / "s.zarr", workers=1, max_failures=1.0)
    assert FeatureStore.open(tmp_path / "s.zarr").offsets("caption").tolist() == [0, 2, 3, 4]
    fakes("one|two|three", "x", "y")
    extract("fake", tmp_path / "s.zarr", workers=1, retry_failed=True)
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.offsets("caption").tolist() == [0, 3, 4, 5]
    assert store.failures() == []


def test_a_retry_with_other_encoders_is_refused(media, fakes, tmp_path, monkeypatch):
    fakes("bad", *["x"] * 29)
    extract("fake", tmp_path / "s.zarr", media=media, workers=1)
    before = contents(tmp_path / "s.zarr")
    monkeypatch.setenv("FAKE_FINGERPRINT", "fake-2")
    with pytest.raises(CalmrlError, match="of encoder 'fake' fake-1, and this run would add some of 'fake' fake-2"):
        extract("fake", tmp_path / "s.zarr", media=media, workers=1, retry_failed=True)
    monkeypatch.setenv("FAKE_FINGERPRINT", "fake-1")
    with pytest.raises(CalmrlError, match="has the modalities caption, note; the request is for caption"):
        extract("fake", tmp_path / "s.zarr", "caption=fake", media=media, workers=1, retry_failed=True)
    assert contents(tmp_path / "s.zarr") == before
