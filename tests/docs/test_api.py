"""The Python reference is what its generator writes from the docstrings of today."""

import importlib.util

from docs.pages import ROOT


def make_api():
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current():
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == make_api().page(), "run: python docs/make_api.py"


def test_the_list_of_modules_is_current():
    found = make_api().architecture()
    assert (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8") == found, "run: python docs/make_api.py"
    assert "`session.py`: The training loop" in found


def test_every_public_name_of_the_package_is_in_the_reference():
    import calmrl_lab

    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in calmrl_lab.__all__:
        assert f"{name}`" in text, name
