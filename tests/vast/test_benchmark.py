"""The benchmark for a GPU runs where there is none: thin layers, a real extraction that is killed and goes on to the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("av", reason="making clips needs the extra 'media'")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "extract_gpu.py"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, check=True)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and measuring takes minutes")
def test_without_a_gpu_it_says_what_it_would_measure():
    said = run().stdout
    assert "nothing was measured" in said
    assert "cosine between bf16 and fp32" in said


@pytest.mark.slow
def test_every_stage_runs_and_is_kept_as_it_comes(tmp_path):
    done = run("--quick", "--device", "cpu", "--json", "--out", tmp_path / "kept.json", "--folder", tmp_path)
    found = json.loads(done.stdout)
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert {name: stage for name, stage in found.items() if name != "seconds"} == kept
    assert not any("failed" in stage for stage in kept.values())
    assert {stage["cosine_as_wanted"] for stage in (found["vision"], found["audio"], found["caption"])} == {True}
    extraction = found["extraction"]
    assert extraction["same_bytes"] is True
    assert 3 <= extraction["killed_after_blocks"] < 12, "killed in the middle"
    assert f"{extraction['killed_after_blocks']} blocks were there already" in extraction["resumed"]
    assert extraction["profile"].startswith("encoders waited for media")
    assert extraction["gaps"] == {"vision": 0, "audio": 0, "caption": 0, "subtitle": 12}
    assert found["matching"]["condition_tokens"] == 8 * 257 + 256 + 70
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.json"], "what was made is gone"
    assert json.dumps(found["vision"])[1:-1] in done.stderr, "results are said as they come"
