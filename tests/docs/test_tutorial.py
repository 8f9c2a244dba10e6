"""The tutorial runs from top to bottom, and is committed without outputs."""

import json

import pytest
from docs.pages import ROOT

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def cells():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


@pytest.mark.slow
def test_the_tutorial_runs_from_top_to_bottom(room):
    folder = room(NOTEBOOK)
    namespace = {"__name__": "__tutorial__"}
    for number, cell in enumerate(cells()):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"tutorial.ipynb, cell {number}", "exec"), namespace)
    assert (folder / "recall.svg").stat().st_size > 1000
    assert set(namespace["tables"]) == {"calmrl-s0", "clip-s0", "closed-s0"}
    assert all(len(table) == 12 for table in namespace["tables"].values())


def test_the_tutorial_is_committed_without_outputs():
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
