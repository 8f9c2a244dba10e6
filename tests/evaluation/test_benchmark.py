"""The benchmark runs and keeps its promises, with room for a busy machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "retrieval.py"


@pytest.mark.slow
def test_ranks_cost_little_more_than_the_product():
    done = subprocess.run([sys.executable, SCRIPT, "--json", "--repeats", "3"], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    # 70 % of the targets: timings on a shared machine are noisy even as ratios.
    assert result["ratios"]["vs product at 10000"] < 1.3 / 0.7
    assert result["ratios"]["vs sorting at 4000"] > 15 * 0.7
    if result["memory"]:
        assert result["memory"]["memory MB"] < 50
