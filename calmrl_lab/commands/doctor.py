"""`calmrl-lab doctor`: what is installed, what this machine can do, what is wrong."""

from __future__ import annotations

from pathlib import Path

import typer

from calmrl_lab import console


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    stores: list[Path] = typer.Argument(None, help="Feature stores to check as well."),
    as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON."),
) -> None:
    """Check versions, devices, the FAISS flavour and the health of stores; exit code 1 if something is wrong.

    Example: calmrl-lab doctor stores/openmoji.zarr
    """
    from calmrl_lab.diagnosis import examine

    findings = examine(stores or [])
    marks = {"ok": "[green]ok[/green]  ", "note": "[yellow]note[/yellow]", "bad": "[red]bad[/red] "}

    def show() -> None:
        for finding in findings:
            console.out.print(f"{marks[finding['state']]}  {finding['what']}", soft_wrap=True)
            if finding["do"]:
                console.out.print(f"        {finding['do']}", soft_wrap=True, markup=False)

    console.emit(findings, as_json, show)
    if any(finding["state"] == "bad" for finding in findings):
        raise typer.Exit(1)
