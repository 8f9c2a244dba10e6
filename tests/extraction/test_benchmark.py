"""The benchmark of reading clips runs, checks that both ways give the same pixels, and reading is not slower than decoding everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "extraction.py"


@pytest.mark.slow
def test_reading_wanted_frames_is_faster_than_reading_all():
    done = subprocess.run([sys.executable, SCRIPT, "--quick", "--json"], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert len(result["clips"]) == 5
    assert all(clip["plain / ours"] > 1.2 for clip in result["clips"].values())
    assert {clip["frames"] for clip in result["clips"].values()} == {60}
    assert result["sound"]["times real time"] > 10
    assert result["extraction"].get("items") == 12 or "efficientnet" in result["extraction"]["not measured"]
