"""`calmrl-lab report`: runs to tables, figures and one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from calmrl_lab.runtime import console


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    runs: Path = typer.Option(Path("runs"), help="Folder of an experiment or of single runs, or one run."),
    out: Path | None = typer.Option(None, help="Folder to write. (default: reports/<name of the runs folder>)"),
    also_report: list[Path] = typer.Option(
        [], metavar="FOLDER", help="Experiment on other data whose main tables are added; may be repeated."
    ),
    show: bool = typer.Option(False, "--open", help="Open the page in a browser."),
    as_json: bool = typer.Option(False, "--json", help="Print what the report says as JSON."),
) -> None:
    """Write tables (CSV, Markdown, LaTeX), figures (SVG, PDF) and one self-contained HTML page from finished runs.

    Example: calmrl-lab report --runs runs/demo --out reports/demo --open
    """
    from calmrl_lab.reporting import write_report

    written = write_report(runs, out, also_report)
    console.emit(written.payload(), as_json, lambda: _print(written))
    if show:
        import webbrowser

        if not webbrowser.open(written.page.resolve().as_uri()):
            console.note(f"no browser could be started; open {written.page.resolve()} yourself")


def _print(written: Any) -> None:
    lines = [
        written.narrative.headline,
        "",
        written.narrative.paragraph,
        *(f"note: {line}" for line in written.narrative.warnings),
    ]
    for line in lines:
        console.out.print(line, markup=False)
    for problem in written.problems:
        console.note(f"remark on run {problem}")
    console.out.print(f"\nwritten to {written.page}", markup=False, soft_wrap=True)
