"""The benchmark runs and compares what it says; how fast it is, is for the benchmark to say on a quiet machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "store.py"


@pytest.mark.slow
def test_every_way_of_reading_is_compared():
    done = subprocess.run([sys.executable, SCRIPT, "--quick", "--json"], capture_output=True, text=True, check=True)
    ratios = json.loads(done.stdout)["ratios"]
    assert {"whole vs zarr", "rows vs zarr", "whole vs readinto"} <= set(ratios)
    assert all(ratio > 0 for ratio in ratios.values())
