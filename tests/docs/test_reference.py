"""The Python reference names what there is, and the list of modules is that of today."""

import importlib
import re

import pytest
from docs.pages import ROOT, script

import calmrl_lab

REFERENCE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
NAMED = re.findall(r"^::: (\S+)$", REFERENCE, re.MULTILINE)


def test_the_list_of_modules_is_current():
    found = script("docs/list_modules.py").architecture()
    assert (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8") == found, "run: python docs/list_modules.py"
    assert "`session.py`: The training loop" in found


@pytest.mark.parametrize("path", NAMED)
def test_what_the_reference_names_is_there_and_says_what_it_is(path):
    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(module), name).__doc__


def test_every_public_name_of_the_package_is_in_the_reference():
    named = {path.rpartition(".")[2] for path in NAMED}
    assert [name for name in calmrl_lab.__all__ if name not in named] == []
