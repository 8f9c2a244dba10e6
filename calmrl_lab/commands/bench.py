"""`calmrl-lab bench`: side-by-side timings against plain reference formulations."""

from __future__ import annotations

from pathlib import Path

import typer

from calmrl_lab.runtime import console


def register(app: typer.Typer) -> None:
    words = {"allow_extra_args": True, "ignore_unknown_options": True}
    # Every case has options of its own, which `bench CASE --help` shows.
    app.command("bench", add_help_option=False, context_settings=words)(bench)


def bench(
    context: typer.Context,
    case: str | None = typer.Argument(None, help="Case to run; without one, list the cases."),
    help: bool = typer.Option(False, "--help", help="Show this message, or behind a case the options of that case, and exit."),
) -> None:
    """Measure a case side by side with its plain reference; further words go to the case (try --quick, --json, --help).

    Example: calmrl-lab bench imputation --quick
    """
    if help and case is None:
        context.get_help()
        return
    import runpy
    import sys

    from calmrl_lab.errors import CalmrlError
    from calmrl_lab.registry import nearest

    folder = Path(__file__).parents[2] / "benchmarks"
    cases = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if not cases:
        raise CalmrlError(
            "the benchmarks are part of the source tree, and this is an installed package", hint="clone the repository"
        )
    if case is None:
        console.out.print("\n".join(cases))
        return
    if case not in cases:
        raise CalmrlError(f"unknown benchmark '{case}'{nearest(case, cases)}", hint=f"known: {', '.join(cases)}")
    sys.argv = [case, *context.args, *(["--help"] if help else [])]
    sys.path.insert(0, str(folder))
    runpy.run_path(str(folder / f"{case}.py"), run_name="__main__")
