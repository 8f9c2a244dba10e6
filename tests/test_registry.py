"""Registries: one file per plug-in, entry points from other packages, errors that name the nearest name."""

import sys

import pytest

from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import Registry


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "plugged_pkg"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from calmrl_lab.registry import Registry\nthings = Registry('thing', 'plugged_pkg', group='plugged.things')\n"
    )
    (folder / "one.py").write_text(
        'from plugged_pkg import things\n@things.register("one")\nclass One:\n    """The first thing.\n\n    More."""\n'
    )
    (folder / "_hidden.py").write_text("raise RuntimeError('never imported')\n")
    (tmp_path / "foreign.py").write_text('class Two:\n    """From outside."""\n')
    info = tmp_path / "foreign-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[plugged.things]\ntwo = foreign:Two\nbroken = absent_module:X\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield __import__("plugged_pkg").things
    for name in [name for name in sys.modules if name.split(".")[0] in ("plugged_pkg", "foreign")]:
        del sys.modules[name]


def test_files_and_entry_points_are_found(package):
    assert package.names() == ["broken", "one", "two"]
    assert package.get("one").__name__ == "One"
    assert package.describe()["two"] == "From outside."


def test_an_unknown_name_names_the_nearest(package):
    with pytest.raises(CalmrlError, match="unknown thing 'onne'; did you mean 'one'?") as caught:
        package.get("onne")
    assert "two" in caught.value.hint


def test_a_broken_foreign_plugin_hurts_only_who_asks_for_it(package):
    assert package.get("two")
    with pytest.raises(CalmrlError, match="'broken' comes from another package and failed to load"):
        package.get("broken")


def test_two_plugins_of_one_name_are_refused():
    registry = Registry("thing", "nowhere")
    registry.register("a")(int)
    registry.register("a")(int)
    with pytest.raises(CalmrlError, match="two things are called 'a'"):
        registry.register("a")(float)
