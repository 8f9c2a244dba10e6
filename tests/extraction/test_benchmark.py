"""The benchmark of reading clips runs and checks that both ways give the same pixels; how fast they are, a quiet machine says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "extraction.py"


@pytest.mark.slow
def test_every_codec_is_read_both_ways():
    done = subprocess.run([sys.executable, SCRIPT, "--quick", "--json"], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert len(result["clips"]) == 5
    assert all(clip["plain / ours"] > 0 and clip["clips per second"] > 0 for clip in result["clips"].values())
    assert {clip["frames"] for clip in result["clips"].values()} == {60}
    assert result["sound"]["seconds of sound"] == pytest.approx(2, abs=0.1)
    assert result["sound"]["times real time"] > 0
    assert result["extraction"].get("items") == 12 or "efficientnet" in result["extraction"]["not measured"]
