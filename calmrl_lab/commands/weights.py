"""`calmrl-lab weights`: pretrained weights brought by the user."""

from __future__ import annotations

from pathlib import Path

import typer

from calmrl_lab.runtime import console

_app = typer.Typer(no_args_is_help=True, help="Check pretrained weights before a long extraction.")


def register(app: typer.Typer) -> None:
    app.add_typer(_app, name="weights")


@_app.callback()
def _weights() -> None:
    pass


@_app.command("check")
def check(
    folder: Path = typer.Argument(
        ..., help="Folder of weights of VAST, GRAM, PMRL, ImageBind or LanguageBind, or the checkpoint file itself."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON."),
) -> None:
    """Say what of the weights of VAST, ImageBind or LanguageBind is there, what is missing or wrong, and where it belongs; exit code 1 if they cannot be used.

    Example: calmrl-lab weights check weights/vast
    """
    from feature_extractors.encoders._weights_check import check as findings_of

    findings = findings_of(folder)
    marks = {"ok": "[green]ok[/green]  ", "note": "[yellow]note[/yellow]", "bad": "[red]bad[/red] "}

    def show() -> None:
        for finding in findings:
            console.out.print(f"{marks[finding['state']]} ", end="")
            console.out.print(finding["what"], soft_wrap=True, markup=False)
            if finding["do"]:
                console.out.print(f"        {finding['do']}", soft_wrap=True, markup=False)

    console.emit(findings, as_json, show)
    if any(finding["state"] == "bad" for finding in findings):
        raise typer.Exit(1)
