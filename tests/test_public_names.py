"""What can be imported from the packages without knowing their modules."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("calmrl_lab", ["FeatureStore", "Run", "AlignmentModel", "train_heads", "evaluate", "PPCA", "CalmrlError"]),
        ("calmrl_lab.objectives", ["CalMRL", "PMRL", "GRAM", "CLIP"]),
        ("calmrl_lab.imputers", ["PPCA", "Ridge"]),
    ],
)
def test_names_are_imported_from_their_package(package, names):
    module = __import__(package, fromlist=names)
    for name in names:
        assert getattr(module, name).__name__ == name
        assert name in dir(module)


def test_only_public_names_are_listed():
    import calmrl_lab

    assert [name for name in dir(calmrl_lab) if not name.startswith("__")] == sorted(calmrl_lab.__all__)


@pytest.mark.parametrize("package", ["objectives", "imputers", "scorers"])
def test_every_plug_in_can_be_imported_by_its_class(package):
    module = __import__(f"calmrl_lab.{package}", fromlist=[package])
    registry = getattr(module, package)
    entries = [registry.get(name) for name in registry]
    classes = [entry for entry in entries if isinstance(entry, type) and entry.__module__.startswith("calmrl_lab.")]
    assert len({entry.__name__ for entry in classes}) == len({id(entry) for entry in classes})
    for entry in classes:
        assert getattr(module, entry.__name__) is entry
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        _ = module.Nonsense


def test_a_package_imports_nothing_before_it_is_asked():
    code = "import sys, calmrl_lab.objectives, calmrl_lab.imputers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_packages_are_typed():
    import importlib.resources

    for package in ("calmrl_lab", "feature_extractors"):
        assert importlib.resources.files(package).joinpath("py.typed").is_file()
