"""The benchmark runs, checks its contenders against each other, and reports what it is there to measure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "retrieval.py"


@pytest.mark.slow
def test_the_quick_benchmark_reports_its_ratios():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--json", "--quick", "--repeats", "3"], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert set(result["ratios"]) == {"vs product at 1000", "vs sorting at 1000", "vs product at 3000", "vs sorting at 3000"}
    assert all(value > 0 for value in result["ratios"].values())
    if result["memory"]:
        assert result["memory"]["memory MB"] < 50
