"""What becomes of standard output: a reader that goes, a closed stream, a full disk; and text that other programs would run."""

import subprocess
import sys
from pathlib import Path

import pytest

from calmrl_lab.reporting.output.table import Cell, Column, Table

LIST = f"{sys.executable} -m calmrl_lab.cli store info {Path(__file__).parent / 'data' / 'openmoji-small.zarr'}"


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("| head -1 >/dev/null; exit ${PIPESTATUS[0]}", 0, ""),
        (">&-", 0, ""),
        (">/dev/full", 1, "could not be written to standard output"),
    ],
)
def test_standard_output(ending, code, said):
    if "full" in ending and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    done = subprocess.run(["bash", "-c", f"{LIST} {ending}"], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3+cmd", "@SUM(A1)"])
def test_cells_that_a_spreadsheet_would_run_are_inert(text):
    table = Table("t", "caption", (Column("method"),), ((Cell(text),),))
    assert f"'{text}" in table.to_csv()


@pytest.mark.parametrize("text", ["-0.3", "+1.5", "-0.3 (-0.5, 0.1)", "-1.5e-07"])
def test_numbers_stay_numbers(text):
    assert f"'{text}" not in Table("t", "caption", (Column("value"),), ((Cell(text),),)).to_csv()


def test_markdown_holds_no_html():
    text = Table("t", "<b>caption</b>", (Column("<i>"),), ((Cell("<script>alert(1)</script>"),),)).to_markdown()
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;" in text
