"""`calmrl-lab impute`: a store with gaps to a store without, for people who never train heads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from calmrl_lab.runtime import console

if TYPE_CHECKING:
    from calmrl_lab.completion.fill_store import Completion
    from calmrl_lab.completion.held_out_check import Check


def register(app: typer.Typer) -> None:
    app.command("impute")(impute)


def impute(
    store: Path = typer.Option(..., help="Feature store with gaps."),
    out: Path = typer.Option(..., help="Store to write."),
    method: str = typer.Option("ppca-auto", help="Imputer (calmrl-lab list imputers)."),
    assign: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="Option of the imputer; may be repeated."),
    modalities: str | None = typer.Option(None, metavar="NAME,NAME", help="Fill these from each other. (default: all)"),
    fit_split: str = typer.Option("train", help="Split that the imputer learns from."),
    standardise: bool = typer.Option(False, "--standardise", help="Scale every coordinate to unit variance while imputing."),
    check: bool = typer.Option(False, "--check", help="Compare predicted with real errors on items outside the fitted split."),
    figure: Path | None = typer.Option(None, help="With --check: draw that comparison (SVG)."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the store at --out."),
    as_json: bool = typer.Option(False, "--json", help="Print what was filled as JSON."),
) -> None:
    """Fill the gaps of a store; filled rows are marked, with the error to expect.

    Example: calmrl-lab impute --store stores/openmoji.zarr --out stores/openmoji-complete.zarr
    """
    from calmrl_lab.completion.fill_store import complete_store
    from calmrl_lab.config import override
    from calmrl_lab.errors import CalmrlError

    if figure is not None and not check:
        raise CalmrlError("--figure draws what --check finds", hint="add --check")
    if figure is not None and not figure.absolute().parent.is_dir():
        raise CalmrlError(f"--figure: there is no folder '{figure.parent}'", hint="make it first")
    names = [name.strip() for name in modalities.split(",")] if modalities else None
    done = complete_store(store, out, method, override({}, assign), names, fit_split, standardise, overwrite, check)
    if figure is not None:
        _draw(done, figure)
    console.emit(done.payload(), as_json, lambda: _show(done))


def _draw(done: Completion, path: Path) -> None:
    from calmrl_lab.reporting.content.reliability_figure import reliability_figure
    from calmrl_lab.runtime.atomic_files import write_atomically

    assert done.check is not None
    write_atomically(path, reliability_figure({done.imputer: done.check.reliability}).svg().encode())


def _show(done: Completion) -> None:
    table = console.table(title="Expected squared error of filled entries; 1 is no better than the mean")
    for heading in ("observed", "filled", "items", "error"):
        table.add_column(heading, justify="right" if heading in ("items", "error") else "left")
    for row in done.patterns:
        error = "-" if row["relative_error"] is None else f"{row['relative_error']:.3f}"
        table.add_row(row["observed"], row["filled"], str(row["items"]), error)
    if done.patterns:
        console.show(table)
    else:
        console.out.print("nothing to fill: every item shows every modality")
    if done.check:
        _show_check(done.check)
    if done.empty_items:
        console.out.print(f"{done.empty_items} items show nothing and stay empty")
    console.out.print(f"written to {done.path}", markup=False, soft_wrap=True)


def _show_check(check: Check) -> None:
    title = f"Predicted against real error on {check.items} held-out items; 1 is no better than the mean"
    table = console.table(title=title)
    for heading in ("entries", "predicted", "real", "standard error"):
        table.add_column(heading, justify="right")
    for row in check.payload()["bins"]:
        cells = (row[key] for key in ("predicted", "real", "standard_error"))
        table.add_row(f"{row['count']:.0f}", *("-" if cell is None else f"{cell:.3f}" for cell in cells))
    console.show(table)
    console.out.print(f"real over predicted error: {check.reliability.ratio:.2f} (above 1: predicted errors are too small)")
