"""Real disks that are full, read-only or somebody else's, and writers that are killed: no damaged store, one clear sentence."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore, export_store, verify, write_store

from .conftest import parts

# Writes 4 MB of features to argv[1], a block every argv[2] seconds.
WRITER = """
import sys, time
import numpy as np
from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import ModalitySpec, write_store

def blocks():
    for _ in range(40):
        time.sleep(float(sys.argv[2]))
        print("block", flush=True)
        yield np.ones((1000, 50))

try:
    write_store(sys.argv[1], dataset="d", modalities=[ModalitySpec("a", "e", "f", 50)], ids=[str(i) for i in range(40000)],
                split=["train"] * 40000, features={"a": blocks()}, offsets={"a": np.arange(40001)})
except CalmrlError as error:
    print(f"{type(error).__name__}: {error.message}")
"""


def write_in_namespace(folder: Path, mount_options: str) -> str:
    """Run the writer on a tmpfs of its own, which needs no rights outside of a user namespace."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare on this machine")
    after = 'ls -A "$0" | sed "s/^/left: /"'
    script = f'mount -t tmpfs -o {mount_options} tmpfs "$0" && "$1" -c "$2" "$0/s.zarr" 0; {after}'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, str(folder), sys.executable, WRITER], capture_output=True, text=True, timeout=60
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"this machine allows no mounts: {done.stderr.strip()[:80]}")
    return done.stdout


def test_a_small_disk_that_fills_up(tmp_path):
    said = write_in_namespace(tmp_path, "size=2m")
    assert "WorkFailedError: the disk is full" in said
    assert "left:" not in said


def test_a_read_only_disk(tmp_path):
    said = write_in_namespace(tmp_path, "ro")
    assert "WorkFailedError: " in said
    assert "read-only file system" in said


def test_a_directory_of_somebody_else(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    theirs.chmod(0o555)
    # Root may write anywhere, so it steps down to the user 'nobody' first; the packages must be loaded while it still can.
    step_down = "import os, numpy, calmrl_lab.store.writer\nif os.geteuid() == 0:\n    os.seteuid(65534)\n"
    command = [sys.executable, "-c", step_down + WRITER, str(theirs / "s.zarr"), "0"]
    tmp_path.chmod(0o755)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "cannot be written: permission denied" in done.stdout, done.stderr
    theirs.chmod(0o755)
    assert list(theirs.iterdir()) == []


def test_a_killed_writer_leaves_no_store_and_the_next_one_cleans_up(tmp_path):
    target = tmp_path / "s.zarr"
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(target), "0.05"], stdout=subprocess.PIPE, text=True)
    for _ in range(18):
        child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not target.exists()
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    write_store(target, **parts())
    assert os.listdir(tmp_path) == ["s.zarr"]
    assert verify(target) == []


# Replaces the store argv[1] and is killed at its rename number argv[2]; argv[3] says whether before or after.
REPLACER = """
import os, signal, sys
from store.conftest import parts
from calmrl_lab.store import write_store

rename, calls = os.rename, []

def deadly(source, target):
    calls.append(target)
    if len(calls) == int(sys.argv[2]) and sys.argv[3] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

os.rename = deadly
write_store(sys.argv[1], **parts(seed=1), overwrite=True)
"""


@pytest.mark.parametrize(("number", "when"), [(1, "before"), (1, "after"), (2, "after"), (3, "after")])
def test_a_writer_killed_while_it_replaces_a_store_loses_neither(store_path, tmp_path, number, when):
    old = FeatureStore.open(store_path).digest
    new = FeatureStore.open(write_store(tmp_path / "new.zarr", **parts(seed=1))).digest
    child = subprocess.run(
        [sys.executable, "-c", REPLACER, str(store_path), str(number), when],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
    )
    assert child.returncode == -signal.SIGKILL
    if (number, when) == (1, "after"):
        # The one moment at which nothing is in its place: the old one is named, and nobody removes it.
        with pytest.raises(CalmrlError, match="a command was killed while it replaced it; the store as it was is") as caught:
            FeatureStore.open(store_path)
        assert FeatureStore.open(caught.value.message.rpartition("'")[0].rpartition("'")[2]).digest == old
        assert caught.value.hint.startswith("repeat that command, or: mv ")
        with pytest.raises(CalmrlError, match="exists already"):
            write_store(store_path, **parts(seed=2))
    assert FeatureStore.open(store_path).digest == (old if number == 1 else new)
    assert verify(store_path) == []
    write_store(store_path, **parts(seed=1), overwrite=True)
    assert FeatureStore.open(store_path).digest == new
    assert sorted(os.listdir(tmp_path)) == ["five.zarr", "new.zarr"]


def test_what_a_killed_export_left_is_removed_by_the_next(store_path, tmp_path):
    killed = (
        "import os, signal, sys\nfrom calmrl_lab.store import FeatureStore\nfrom calmrl_lab.store.convert import export as exporting\n"
        "exporting._small_arrays = lambda store: os.kill(os.getpid(), signal.SIGKILL)\n"
        "exporting.export_store(FeatureStore.open(sys.argv[1]), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", killed, str(store_path), str(tmp_path / "x.h5")])
    assert len(os.listdir(tmp_path)) == 2
    export_store(FeatureStore.open(store_path), tmp_path / "x.h5")
    assert sorted(os.listdir(tmp_path)) == ["five.zarr", "x.h5"]


LOOK = """
import os, sys
import numpy, h5py, calmrl_lab.registry, calmrl_lab.store.convert.import_arrays, calmrl_lab.store.convert.restore
from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore, import_features, restore, verify

if os.geteuid() == 0:
    os.seteuid(65534)
store, target = sys.argv[1:]
for look in (
    lambda: FeatureStore.open(store),
    lambda: verify(store),
    lambda: import_features(target, {"v": store + "/v.npy"}),
    lambda: import_features(target, {"v": store + "/v.npz:x"}, table=store + "/t.csv"),
    lambda: restore(store + "/x.h5", target),
):
    try:
        look()
    except CalmrlError as error:
        print(error.message)
"""


def test_what_may_not_be_read(store_path, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    store_path.rename(closed / "s.zarr")
    tmp_path.chmod(0o755)
    closed.chmod(0)
    try:
        command = [sys.executable, "-c", LOOK, str(closed / "s.zarr"), str(tmp_path / "t.zarr")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        closed.chmod(0o755)
    assert [line.count("ermission denied") for line in done.stdout.splitlines()] == [1] * 5, done.stderr


@pytest.mark.parametrize("removed", [False, True])
def test_a_store_that_is_replaced_while_it_is_open(store_path, five, removed):
    """Its mask is in memory, its features would be those of another store: better no answer than a mixture."""
    store = FeatureStore.open(store_path)
    if removed:
        shutil.rmtree(store_path)
    else:
        write_store(store_path, **parts(seed=1), overwrite=True)
    for read in (lambda: store.features("vision"), lambda: store.ids, lambda: store.rows("audio", [0])):
        with pytest.raises(CalmrlError, match="was replaced or removed since it was opened"):
            read()
