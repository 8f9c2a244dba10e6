"""The description of a store as tables for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from calmrl_lab.store.schema import SPLITS

# More patterns than a screen has lines are counted together.
_SHOWN_PATTERNS = 15


def show(description: dict[str, Any], console: Console) -> None:
    """Print what `calmrl_lab.store.description.describe` returns."""
    d = description
    console.print(
        f"[bold]{escape(d['path'])}[/bold]  dataset {escape(d['dataset'])}, {size(d['bytes'])}, digest {d['digest'][:16]}"
    )
    for name in ("licence", "attribution"):
        if d[name]:
            console.print(f"{name}: {escape(d[name])}", soft_wrap=True)
    splits = ", ".join(f"{count} {name}" for name, count in d["splits"].items())
    empty = f", {d['empty_items']} without any" if d["empty_items"] else ""
    console.print(f"{d['items']} items ({splits}) in {d['groups']} groups; {d['complete_items']} show every modality{empty}")
    for name, values in (("labels", d["labels"]), ("failed media", d["failures"])):
        if values:
            console.print(f"{name}: " + ", ".join(f"{escape(key)} ({count})" for key, count in values.items()))
    if d["heads"]:
        console.print("heads: " + ", ".join(f"{escape(key)} {shape}" for key, shape in d["heads"].items()))
    for m in d["modalities"]:
        console.print(f"{m['name']}: {escape(m['encoder'])} [dim]({escape(m['fingerprint'][:24])})[/dim]", soft_wrap=True)
    for table in (_modalities(d), _patterns(d), _co_observed(d)):
        console.print()
        console.print(table)


def size(count: int) -> str:
    """Bytes in words: 1.3 MB."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right")
    return table


def _modalities(d: dict[str, Any]) -> Table:
    columns = ("name", "d", "dtype", "rows", "observed", "%", "absent", "failed", "not extracted", "size")
    table = _table("modalities", *columns)
    for m in d["modalities"]:
        share = f"{100 * m['observed'] / d['items']:.0f}"
        numbers = (str(m[key]) for key in ("absent", "failed", "not_extracted"))
        counts = (str(m["dimension"]), m["dtype"], str(m["rows"]), str(m["observed"]), share)
        table.add_row(m["name"], *counts, *numbers, size(m["bytes"]))
    return table


def _patterns(d: dict[str, Any]) -> Table:
    table = _table("patterns (observed modalities)", "pattern", "items", "%", *SPLITS)
    for entry in d["patterns"][:_SHOWN_PATTERNS]:
        splits = (str(entry[name]) for name in SPLITS)
        table.add_row(entry["pattern"] or "(none)", str(entry["items"]), f"{100 * entry['items'] / d['items']:.1f}", *splits)
    others = d["patterns"][_SHOWN_PATTERNS:]
    if others:
        items = sum(entry["items"] for entry in others)
        splits = (str(sum(entry[name] for entry in others)) for name in SPLITS)
        table.add_row(f"{len(others)} further patterns", str(items), f"{100 * items / d['items']:.1f}", *splits)
    return table


def _co_observed(d: dict[str, Any]) -> Table:
    names = [m["name"] for m in d["modalities"]]
    table = _table("items that show both", "", *names)
    for name, row in zip(names, d["co_observed"], strict=True):
        table.add_row(name, *(f"[red]{count}[/red]" if count == 0 else str(count) for count in row))
    return table
