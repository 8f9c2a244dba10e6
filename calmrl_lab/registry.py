"""Named plug-ins: modules of a package register themselves by a decorator, other packages by entry points."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
from typing import Any, TypeVar

from calmrl_lab import renamed
from calmrl_lab.errors import CalmrlError

T = TypeVar("T")


def nearest(name: str, known: list[str]) -> str:
    """The clause '; did you mean ...?' for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def known(name: str, names: Sequence[str], what: str, hint: str | None = None) -> int:
    """The place of `name` among `names`. Raises CalmrlError if it is not there: `what` 'name', the nearest of `names`, and what there is.

    >>> known("text", ["image", "text"], "the model has no modality")
    1
    """
    if name in names:
        return list(names).index(name)
    hint = renamed.hint(name, renamed.VALUES) or hint or f"there is: {', '.join(names) or 'nothing'}"
    raise CalmrlError(f"{what} '{name}'{nearest(name, list(names))}", hint=hint)


class Registry:
    """A dictionary from name to plug-in, filled when it is first asked.

    Every module directly inside `package` is imported then (one file per plug-in, no list to edit), and so is every entry point
    of `group` (default: the package's own name), so that other packages can add theirs. A plug-in of another package that
    fails to import is kept as an error that shows when, and only when, its name is asked for.
    """

    def __init__(self, kind: str, package: str, group: str | None = None) -> None:
        self.kind = kind
        self.package = package
        self.group = group or package
        self._entries: dict[str, Any] = {}
        self._broken: dict[str, Exception] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files the decorated class or function under `name`."""

        def file(entry: T) -> T:
            known = self._entries.get(name)
            if known is not None and known is not entry:
                raise CalmrlError(
                    f"two {self.kind}s are called '{name}': {_place(known)} and {_place(entry)}",
                    hint="rename one of them, or uninstall the package that brings it",
                )
            self._entries[name] = entry
            return entry

        return file

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.group):
            try:
                entry = point.load()
            except Exception as error:  # a foreign package's import may fail in any way
                self._broken[point.name] = error
                continue
            if self._entries.get(point.name) is not entry:
                self.register(point.name)(entry)
        self._loaded = True

    def names(self) -> list[str]:
        """All names, sorted; plug-ins that failed to import are included."""
        self._load()
        return sorted({*self._entries, *self._broken})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def get(self, name: str) -> Any:
        """The plug-in called `name`; CalmrlError with the nearest known name if there is none."""
        self._load()
        if name in self._entries:
            return self._entries[name]
        if name in self._broken:
            raise CalmrlError(
                f"the {self.kind} '{name}' comes from another package and failed to load: {self._broken[name]}",
                hint="repair or uninstall the package that brings it",
            )
        raise CalmrlError(
            f"unknown {self.kind} '{name}'{nearest(name, self.names())}",
            hint=renamed.hint(name, renamed.VALUES) or f"known {self.kind}s: {', '.join(self.names())}",
        )

    def create(self, name: str, *arguments: Any, **options: Any) -> Any:
        """The plug-in called `name`, called with `arguments` and `options`.

        Raises CalmrlError for an unknown name, and for an option that the plug-in does not take, with the nearest that it does.
        """
        entry = self.get(name)
        try:
            signature = inspect.signature(entry)
            signature.bind(*arguments, **options)
        except TypeError as error:
            known = list(signature.parameters)[len(arguments) :]
            unknown = next((key for key in options if key not in signature.parameters), "")
            raise CalmrlError(
                f"{self.kind} '{name}': {error}{nearest(unknown, known) if unknown else ''}",
                hint=f"its options: {', '.join(known) or 'none'}",
            ) from None
        except ValueError:  # a callable that says nothing of its arguments
            pass
        return entry(*arguments, **options)

    def describe(self) -> dict[str, str]:
        """Name to the first line of its docstring."""
        self._load()
        lines = {name: (entry.__doc__ or "").strip().split("\n")[0] for name, entry in self._entries.items()}
        lines |= {name: f"(failed to load: {error})" for name, error in self._broken.items()}
        return dict(sorted(lines.items()))


def exported(registry: Registry) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package of plug-ins: every plug-in can be imported from it by the name of its class.

    >>> from calmrl_lab.imputers import PPCA, Ridge
    >>> PPCA(latent_dim=8).latent_dim
    8

    Nothing is imported before a class is asked for.
    """

    def classes() -> dict[str, Any]:
        registry._load()
        return {entry.__name__: entry for entry in registry._entries.values() if isinstance(entry, type)}

    def __getattr__(name: str) -> Any:
        # Class names only: Python asks packages for many other attributes, and for modules that are being imported.
        found = classes().get(name) if name[:1].isupper() else None
        if found is None:
            raise AttributeError(f"module '{registry.package}' has no attribute '{name}'")
        return found

    return __getattr__, lambda: sorted({*vars(importlib.import_module(registry.package)), *classes()})


def _place(entry: Any) -> str:
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', entry)}"
