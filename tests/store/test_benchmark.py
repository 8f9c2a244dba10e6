"""The benchmark runs and keeps its promises, with room for a busy machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "store.py"


@pytest.mark.slow
def test_reading_is_faster_than_zarr_python():
    done = subprocess.run([sys.executable, SCRIPT, "--quick", "--json"], capture_output=True, text=True, check=True)
    ratios = json.loads(done.stdout)["ratios"]
    # 70 % of the targets: timings on a shared machine are noisy even as ratios.
    assert ratios["whole vs zarr"] > 1.4
    assert ratios["rows vs zarr"] > 14
    assert ratios["whole vs readinto"] > 0.4
