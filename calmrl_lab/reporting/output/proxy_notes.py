"""Notes on proxy data: where a dataset is used in place of another, every table and figure says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from calmrl_lab.reporting.output.drawing import Figure
from calmrl_lab.reporting.output.table import Table
from calmrl_lab.reporting.results.collect import Gathered


def marked_tables(tables: Mapping[str, Table], gathered: Gathered) -> dict[str, Table]:
    """The tables, with what the data stands in for as their last note."""
    words = gathered.stand_in
    return {name: replace(table, notes=(*table.notes, words)) if words else table for name, table in tables.items()}


def marked_figures(figures: Mapping[str, Figure], gathered: Gathered) -> dict[str, Figure]:
    """The figures, with a line in the drawing itself and the whole sentence in the description."""
    return {name: _marked(figure, gathered) if gathered.stand_in else figure for name, figure in figures.items()}


def _marked(figure: Figure, gathered: Gathered) -> Figure:
    words = f"stand-in data: {gathered.store.get('dataset') or gathered.folder.name}"
    basis = f"{words}; {figure.basis}" if figure.basis else words
    return Figure(
        figure.name,
        f"{figure.title} ({words})",
        figure.caption,
        f"{figure.description} {gathered.stand_in}",
        figure.draw,
        basis,
    )
