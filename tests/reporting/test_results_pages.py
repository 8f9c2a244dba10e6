"""The results pages are written from runs: the command works, and the committed pages hold tables between their marks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_command_writes_tables_between_the_marks(small_store, tmp_path):
    for name in ("results.md", "beyond.md"):
        page = (ROOT / "docs" / name).read_text()
        (tmp_path / name).write_text(re.sub(r"(begin -->).*?(<!-- )", r"\1\n\n\2", page, flags=re.DOTALL))
    only = ("--only", "objectives-pairs", "--only", "beyond-openmoji")
    words = ("--quick", "--json", "--store", small_store, "--runs", tmp_path / "runs", "--write", tmp_path, "--jobs", "1")
    script = ROOT / "benchmarks" / "results.py"
    done = subprocess.run([sys.executable, script, *only, *words], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["objectives-pairs"].strip() in (tmp_path / "results.md").read_text()
    assert "| CLIP, nothing hidden (oracle) |" in (tmp_path / "beyond.md").read_text()
    assert "| ImageBind | nothing to choose | 1 |" in found["objectives-pairs"]


@pytest.mark.parametrize("page", ["results.md", "beyond.md"])
def test_the_committed_pages_hold_their_tables(page):
    text = (ROOT / "docs" / page).read_text()
    for name in re.findall(r"<!-- ([\w-]+): begin -->", text):
        inside = text.split(f"<!-- {name}: begin -->")[1].split(f"<!-- {name}: end -->")[0]
        assert "R@1 %" in inside, f"{page}: nothing stands between the marks of {name}"
