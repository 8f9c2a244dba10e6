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
from calmrl_lab.store import FeatureStore, verify, write_store

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
    assert "CalmrlError: " in said
    assert "read-only file system" in said


def test_a_directory_of_somebody_else(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    theirs.chmod(0o555)
    # Root may write anywhere, so it steps down to the user 'nobody' first; the packages must be loaded while it still can.
    step_down = "import os, numpy, calmrl_lab.store.writing\nif os.geteuid() == 0:\n    os.seteuid(65534)\n"
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
