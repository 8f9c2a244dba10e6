"""Stage 1 under the name of this package: `calmrl_lab.extract` is the top-level package `feature_extractors`.

`from calmrl_lab.extract.encoders import encoders` gives the same registry as `from feature_extractors.encoders import encoders`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import feature_extractors

_ALIAS, _PACKAGE = __name__, feature_extractors.__name__


class _AliasFinder(MetaPathFinder, Loader):
    """Modules below the alias are those of the package: the same objects, so that what they register is registered once."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname.startswith(f"{_ALIAS}.") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        found = importlib.import_module(_PACKAGE + spec.name.removeprefix(_ALIAS))
        spec.loader_state = found.__spec__
        return found

    def exec_module(self, module: Any) -> None:
        # The import system has written the alias into a module that knows its own name.
        alias = module.__spec__
        module.__spec__ = alias.loader_state


sys.meta_path.insert(0, _AliasFinder())
sys.modules[_ALIAS] = feature_extractors
