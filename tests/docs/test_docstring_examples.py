"""Examples in docstrings run, and everything that is public has one."""

import doctest
import importlib

import pytest
from docs.pages import ROOT

import calmrl_lab
from calmrl_lab.imputers import imputers
from calmrl_lab.objectives import objectives

_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
WITH_EXAMPLES = [
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
    for package in ("calmrl_lab", "feature_extractors")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_of_a_module_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(module), optionflags=_FLAGS)
    assert found.attempted
    assert found.failed == 0


@pytest.mark.parametrize("registry", [objectives, imputers], ids=["objectives", "imputers"])
def test_every_plug_in_has_an_example(registry):
    assert [name for name in registry.names() if ">>> " not in (registry.get(name).__doc__ or "")] == []


@pytest.mark.parametrize("name", calmrl_lab.__all__)
def test_every_public_name_has_an_example(name):
    thing = getattr(calmrl_lab, name)
    assert ">>> " in "".join([thing.__doc__ or "", *((getattr(value, "__doc__", "") or "") for value in vars(thing).values())])
