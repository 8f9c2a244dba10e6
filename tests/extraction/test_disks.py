"""An extraction whose disk fills up stops with a sentence, and goes on where it stopped when there is room again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

# In a namespace of its own: a small disk, the run, what it left, a larger disk, the run again.
SCRIPT = """
mount -t tmpfs -o size=$ROOM tmpfs "$DISK" || exit 9
run() {
    "$PYTHON" -m calmrl_lab extract --dataset folder --manifest "$TABLE" --media "$MEDIA" --encoders a=identity \\
        --out "$DISK/s.zarr" --workers 1 --block-size 200
    echo "code $?"
}
run
ls -A "$DISK" | sed "s/^/left: /"
mount -o remount,size=16m "$DISK"
run
"$PYTHON" -m calmrl_lab store verify "$DISK/s.zarr"
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("room", "finished"), [("400k", 2), ("1100k", 10)], ids=["while parts are written", "while they are joined"]
)
def test_a_disk_that_fills_up(tmp_path, room, finished):
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare on this machine")
    rng = np.random.default_rng(0)
    rows = [{"id": f"i{j}", "split": "train", "a": rng.standard_normal(100).round(3).tolist()} for j in range(2000)]
    table, disk = tmp_path / "items.jsonl", tmp_path / "disk"
    table.write_text("\n".join(map(json.dumps, rows)))
    disk.mkdir()
    places = {
        "PYTHON": sys.executable,
        "TABLE": str(table),
        "MEDIA": str(tmp_path),
        "DISK": str(disk),
        "COLUMNS": "300",
        "ROOM": room,
    }
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SCRIPT], capture_output=True, text=True, timeout=120, env={**os.environ, **places}
    )
    if done.returncode == 9 or "unshare" in done.stderr:
        pytest.skip(f"this machine allows no mounts: {done.stderr.strip()[:80]}")
    first, _, second = done.stdout.partition("left: ")
    assert "code 1" in first, done.stderr
    assert "the disk is full" in done.stderr
    left = [line.removeprefix("left: ") for line in done.stdout.splitlines() if line.startswith("left: ")]
    assert left == ["s.zarr.parts"], "no half a store"
    assert "code 0" in second, done.stderr
    assert f"{finished} blocks were there already" in second
    assert "s.zarr: whole" in second
