"""Method files: read, checked and found by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from calmrl_lab.config import read_yaml
from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known

FOLDER = Path(str(files("calmrl_lab.methods")))
# Keys of a method file that are no settings of training.
_ABOUT = ("describe", "source", "with_stored_heads")


@dataclass(frozen=True)
class Method:
    """A named set of training settings.

    `source` says where it comes from (a paper, a page of the documentation). Settings that a method does not name keep the defaults of
    `TrainConfig`. `with_stored_heads` names the method that takes its place where none was named and the store contains projection
    weights of its own.
    """

    name: str
    description: str
    source: str
    settings: dict[str, Any]
    with_stored_heads: str | None = None


def names() -> list[str]:
    """All methods, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Method:
    """The method called `name`, or the one in the YAML file `name` (a path that ends in .yaml).

    Raises CalmrlError with the nearest known name if there is none, for a file without its two sentences, and for a file of one's own that is called
    like a method of this package.

    >>> load("calmrl").settings
    {'objective': 'calmrl', 'impute': 'ppca'}
    """
    if name.endswith(".yaml"):
        path = Path(name)
        if path.stem in names() and path.resolve().parent != FOLDER.resolve():
            raise CalmrlError(f"method file '{path}' is called like the method '{path.stem}' of this package", hint="rename it")
        return _read(path)
    known(name, names(), "unknown method")
    return _read(FOLDER / f"{name}.yaml")


def _read(path: Path) -> Method:
    values = read_yaml(path)
    for key in ("describe", "source"):
        if not isinstance(values.get(key), str):
            raise CalmrlError(f"method file '{path}' has no '{key}'", hint="docs/adding/method.md shows a whole file")
    settings = {key: value for key, value in values.items() if key not in _ABOUT}
    return Method(path.stem, values["describe"], values["source"], settings, values.get("with_stored_heads"))


def describe() -> dict[str, str]:
    """Name to description and source, for lists."""
    return {name: f"{load(name).description} ({load(name).source})" for name in names()}
