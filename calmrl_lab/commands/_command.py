"""How commands read their words: the run, store or index that a command works on may be an option or a position, whichever people type."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

# Options that may be positions, the likeliest first where none is required.
_PLACES = ("index", "store", "runs", "run")
# Positions that may be options.
_POSITIONS = {"store": "--store", "stores": "--store", "first": "--run", "second": "--run"}


class _PlainFlags:
    """Help without a type for options that take no value, and without the name of a Python type for positions that take several."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False) and param.metavar is None:
                param.metavar = ""
            if param.nargs == -1:
                param.display_type = lambda ctx: "<path>"
        return params


class Group(_PlainFlags, TyperGroup):
    """A group of commands."""


class Command(_PlainFlags, TyperCommand):
    """A command of which `evaluate RUN` and `evaluate --run RUN`, `store info --store STORE` and `store info STORE` are the same."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = self._with_position(ctx, list(args)) if self._place is not None else self._with_option(list(args))
        return list(super().parse_args(ctx, args))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = list(super().collect_usage_pieces(ctx))
        return [*pieces, f"[{self._place.upper()}]"] if self._place is not None else pieces

    @property
    def _place(self) -> str | None:
        """The name of the option that may be a position; None for a command that has positions of its own."""
        if any(param.param_type_name == "argument" for param in self.params):
            return None
        found = [param for name in _PLACES for param in self.params if param.name == name]
        return next((str(param.name) for param in sorted(found, key=lambda param: not param.required)), None)

    def _with_position(self, ctx: Any, args: list[str]) -> list[str]:
        """A word that belongs to no option becomes the value of the option that may be a position."""
        option = f"--{self._place}"
        surplus = self._surplus(ctx, args)
        if not surplus or any(word.partition("=")[0] == option for word in args):
            return args
        for number, word in enumerate(args):
            others = [*args[:number], *args[number + 1 :]]
            if word == surplus[0] and self._surplus(ctx, others) == surplus[1:]:
                return [option, word, *others]
        return args

    def _surplus(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return list(self.make_parser(ctx).parse_args(args=list(args))[1])
        except Exception:  # an error of usage, which is said when the words are read in earnest
            return []

    def _with_option(self, args: list[str]) -> list[str]:
        """The option of a position becomes the position."""
        positions = [str(param.name) for param in self.params if param.param_type_name == "argument"]
        own = {word for param in self.params if param.param_type_name != "argument" for word in param.opts}
        aliases = {_POSITIONS[name] for name in positions if name in _POSITIONS} - own
        found: list[str] = []
        for number, word in enumerate(args):
            option, equals, value = word.partition("=")
            if option in aliases and equals:
                found.append(value)
            elif word not in aliases or number == len(args) - 1:
                found.append(word)
        return found
