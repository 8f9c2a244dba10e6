"""The command line. Every command lives in `calmrl_lab/commands/`; this file assembles them and turns errors into sentences."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Any

import typer

from calmrl_lab import commands, renamed
from calmrl_lab._version import __version__
from calmrl_lab.commands._command import Command, Group
from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime import console, progress, threads
from calmrl_lab.runtime.standard_streams import standard_streams, system_errors

# The order of the main path; commands not named here follow.
_ORDER = ("extract", "store", "train-heads", "evaluate", "experiment", "report", "compare", "impute", "index", "search")


class _OrderedGroup(Group):
    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


app = typer.Typer(
    name="calmrl-lab",
    cls=_OrderedGroup,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Align many modalities over cached features when some of them are missing.",
    epilog="First steps: calmrl-lab extract --dataset openmoji, then train-heads, evaluate, report.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"calmrl-lab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    quiet: bool = typer.Option(False, "--quiet", help="Print neither notes nor progress."),
    threads: int = typer.Option(1, "--threads", help="CPU threads. (default: OMP_NUM_THREADS, or 1)", show_default=False),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and stop."),
) -> None:
    pass


def _assemble() -> None:
    names = (module.name for module in pkgutil.iter_modules(commands.__path__))
    for name in (name for name in names if not name.startswith("_")):
        importlib.import_module(f"{commands.__name__}.{name}").register(app)
    for group in app.registered_groups:
        group.cls = Group
    apps = [app, *(group.typer_instance for group in app.registered_groups if group.typer_instance is not None)]
    for command in [command for one in apps for command in one.registered_commands]:
        command.cls = Command


_assemble()


def _refuse_renamed_options(words: list[str]) -> None:
    if found := renamed.option_hint(words):
        raise CalmrlError(f"there is no option '{found[0]}'", hint=found[1])


def _without_threads(words: list[str]) -> list[str]:
    """`words` without --threads N, which is accepted anywhere, and set here. CalmrlError if N is no number."""
    rest = list(words)
    for place, word in enumerate(words):
        if word.partition("=")[0] == "--threads":
            taken = 1 if "=" in word else 2
            value = word.partition("=")[2] if taken == 1 else "".join(words[place + 1 : place + 2])
            if not value.isdecimal():
                raise CalmrlError(f"--threads takes a whole number of at least 1, got '{value}'")
            threads.ask(int(value))
            del rest[place : place + taken]
            break
    return rest


def main() -> None:
    """Entry point: exit code 0, 1 (the work failed) or 2 (the request makes no sense); a traceback only with --debug."""
    debug, console.quiet = "--debug" in sys.argv, "--quiet" in sys.argv
    # Accepted anywhere on the line, not only before the command.
    sys.argv = [sys.argv[0], *(word for word in sys.argv[1:] if word not in ("--debug", "--quiet"))]
    try:
        sys.argv = [sys.argv[0], *_without_threads(sys.argv[1:])]
        # Before the libraries that look at it are loaded.
        threads.ask(threads.count())
        _refuse_renamed_options(sys.argv[1:])
        # What has no progress of its own is shown as the command that takes so long.
        with (
            standard_streams(),
            system_errors(),
            progress.shown(),
            progress.progress(next((word for word in sys.argv[1:] if not word.startswith("-")), "calmrl-lab")),
        ):
            app()
    except CalmrlError as error:
        if debug:
            raise
        console.err.print(f"error: {error.message}", markup=False, soft_wrap=True)
        if error.hint:
            console.err.print(f"hint: {error.hint}", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.err.print("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
