"""A page's folder: furnished, current, and on the path, with fresh registries that see the page's plug-in."""

import importlib
import sys

import pytest

_REGISTRIES = (
    ("calmrl_lab.objectives", "objectives"),
    ("calmrl_lab.imputers", "imputers"),
    ("calmrl_lab.scorers", "scorers"),
    ("feature_extractors.datasets", "datasets"),
    ("feature_extractors.encoders", "encoders"),
)


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A function page -> its furnished folder."""
    from docs.pages import furnish

    def enter(page):
        furnish(tmp_path, page)
        monkeypatch.chdir(tmp_path)
        # Loaded before the page's plug-in is on the path, so that what it registers goes into the copies only.
        registries = [getattr(importlib.import_module(module), name) for module, name in _REGISTRIES]
        for registry in registries:
            registry.names()
        monkeypatch.syspath_prepend(str(tmp_path))
        for registry in registries:
            monkeypatch.setattr(registry, "_entries", dict(registry._entries))
            monkeypatch.setattr(registry, "_loaded", False)
        return tmp_path

    before = set(sys.modules)
    yield enter
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
