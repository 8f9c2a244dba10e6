"""`calmrl-lab store`: look at feature stores, check them, make them from other files and turn them into such, merge them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime import console
from calmrl_lab.runtime.progress import progress
from calmrl_lab.store.schema import SPLITS

_JSON = typer.Option(False, "--json", help="Print the result as JSON.")
_OVERWRITE = typer.Option(False, "--overwrite", help="Replace what an earlier command wrote there.")
_OUT = typer.Option(..., "--out", help="Store to write.")


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Look at feature stores, check, import, export and merge them.")
    group.command("info")(info)
    group.command("verify")(verify)
    group.command("import")(import_)
    group.command("export")(export)
    group.command("merge")(merge)
    app.add_typer(group, name="store")


def info(store: Path = typer.Argument(..., help="Feature store."), as_json: bool = _JSON) -> None:
    """Show items, splits, modalities, gaps by reason, patterns, co-observations, encoders and size.

    Example: calmrl-lab store info stores/openmoji.zarr
    """
    from calmrl_lab.store import FeatureStore
    from calmrl_lab.store.description import describe

    description = describe(FeatureStore.open(store))
    console.emit(description, as_json, lambda: show(description))


def verify(store: Path = typer.Argument(..., help="Feature store."), as_json: bool = _JSON) -> None:
    """Read every byte and name every damaged place; exit code 1 if there is one, 2 if it is no store.

    Example: calmrl-lab store verify stores/openmoji.zarr
    """
    from calmrl_lab.store import verify as find_damage
    from calmrl_lab.store.verification import count_files

    with progress("checking", count_files(store), "files") as task:
        damage = find_damage(store, task.advance)
    payload = {"path": str(store), "whole": not damage, "damage": [{"place": d.place, "problem": d.problem} for d in damage]}
    lines = [f"{d.place}: {d.problem}" for d in damage] or [f"{store}: whole, every file is what was written"]
    console.emit(payload, as_json, lambda: console.out.print("\n".join(lines), markup=False, soft_wrap=True))
    if damage:
        raise typer.Exit(1)


def import_(
    export: Path | None = typer.Argument(None, help="What `store export` wrote, to make a store of it again."),
    out: Path = _OUT,
    modality: list[str] = typer.Option(
        [], metavar="NAME=FILE[:KEY]", help="Features: a file or folder in any form that docs/import.md lists."
    ),
    ids: list[str] = typer.Option([], metavar="[NAME=]FILE", help="Ids of the rows, one per line, for files that hold none."),
    id_column: list[str] = typer.Option(
        [], metavar="[NAME=]COLUMN", help="The array or column that names the rows, where a file leaves it open."
    ),
    by_position: bool = typer.Option(
        False, "--by-position", help="Match rows by their number, though a file holds texts beside them."
    ),
    normalise_ids: bool = typer.Option(
        False, "--normalise-ids", help="Match ids whatever their folder, ending, case, spaces and Unicode form."
    ),
    min_shared: float = typer.Option(0.5, min=0, max=1, help="Share of their ids that two modalities must have in common."),
    pool: str | None = typer.Option(None, help="Several rows per item (frames): mean, or rows to keep them all."),
    zero_is_missing: bool = typer.Option(False, "--zero-is-missing", help="Rows that are zero throughout are missing."),
    mask: list[str] = typer.Option(
        [], metavar="NAME=FILE", help="True where a row is observed (default: rows of NaN are missing)."
    ),
    table: Path | None = typer.Option(
        None, help="Items: columns id, split, group; all others are labels (.csv, .tsv, .json, .jsonl, .parquet)."
    ),
    encoder: list[str] = typer.Option(
        [], metavar="NAME=TEXT", help="Name of the encoder that made the features; needed to merge such stores later."
    ),
    dataset: str = typer.Option("imported", help="Name of the dataset."),
    licence: str = typer.Option("", help="Licence of the features."),
    attribution: str = typer.Option("", help="Whom to credit."),
    dtype: str = typer.Option("keep", help="keep, float16, float32 or float64."),
    normalise: bool = typer.Option(False, "--normalise", help="Divide every row by its norm."),
    drop_empty: bool = typer.Option(False, "--drop-empty", help="Leave out items of which every modality is missing."),
    split_seed: int = typer.Option(0, help="Seed of the splits, drawn by group 60/15/25 if the table has none."),
    overwrite: bool = _OVERWRITE,
    as_json: bool = _JSON,
) -> None:
    """Make a store from files of features; items are matched by id, and what is not there becomes a gap.

    Example: calmrl-lab store import --out mine.zarr --modality vision=clip.npy --modality text=text.parquet --ids ids.txt
    """
    from calmrl_lab.store.convert.import_arrays import import_features
    from calmrl_lab.store.convert.restore import nothing_beside, restore

    if export is not None:
        nothing_beside(export, modality, ids, mask, table)
        _report(restore(export, out, overwrite), as_json)
        return
    shared, ids_of = for_all_or_one("ids", ids)
    id_for_all, id_columns = for_all_or_one("id-column", id_column)
    path = import_features(
        out, assignments("modality", modality), ids=shared, ids_of=ids_of, id_columns={**id_columns, **({"": id_for_all} if id_for_all else {})},
        by_position=by_position, normalise_ids=normalise_ids, min_shared=min_shared, pool=pool, zero_is_missing=zero_is_missing, masks=assignments("mask", mask), table=table,
        encoders=assignments("encoder", encoder), dataset=dataset, licence=licence, attribution=attribution, dtype=dtype,
        normalise=normalise, drop_empty=drop_empty, split_seed=split_seed, overwrite=overwrite,
    )  # fmt: skip
    _report(path, as_json)


def export(
    store: Path = typer.Argument(..., help="Feature store."),
    out: Path = typer.Option(..., "--out", help="File (.h5, .npz) or folder (.parquet) to write."),
    form: str | None = typer.Option(None, "--format", help="hdf5, npz or parquet (default: by the ending)."),
    overwrite: bool = _OVERWRITE,
    as_json: bool = _JSON,
) -> None:
    """Write all of a store as HDF5, npz or Parquet; `store import` makes the same store of it again.

    Example: calmrl-lab store export stores/openmoji.zarr --out openmoji.h5
    """
    from calmrl_lab.store import FeatureStore
    from calmrl_lab.store.convert.export import export_store

    path = export_store(FeatureStore.open(store), out, form, overwrite)
    console.emit({"path": str(path)}, as_json, lambda: console.out.print(str(path), markup=False, soft_wrap=True))


def merge(
    stores: list[Path] = typer.Argument(..., help="Two or more stores."),
    out: Path = _OUT,
    overwrite: bool = _OVERWRITE,
    as_json: bool = _JSON,
) -> None:
    """Join stores: of the same modalities, their items; of different modalities, the modalities of items with the same id.

    Example: calmrl-lab store merge part1.zarr part2.zarr --out whole.zarr
    """
    from calmrl_lab.store.convert.merge import merge as join

    _report(join(stores, out, overwrite), as_json)


def _report(path: Path, as_json: bool) -> None:
    from calmrl_lab.store import FeatureStore

    store = FeatureStore.open(path)
    gaps = int((~store.mask).sum())
    payload = {
        "path": str(path),
        "items": len(store),
        "modalities": list(store.modalities),
        "gaps": gaps,
        "digest": store.digest,
    }
    text = f"{path}: {len(store)} items, {', '.join(f'{m} {d}' for m, d in store.dims.items())}, {gaps} gaps"
    console.emit(payload, as_json, lambda: console.out.print(text, markup=False, soft_wrap=True))


def assignments(option: str, words: Sequence[str]) -> dict[str, str]:
    """['vision=a.npy'] -> {'vision': 'a.npy'}; CalmrlError if a word has no '=' or a name comes twice."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or not value:
            raise CalmrlError(f"--{option} '{word}' is not of the form NAME=VALUE")
        if name in found:
            raise CalmrlError(f"--{option} names '{name}' twice")
        found[name] = value
    return found


def for_all_or_one(option: str, words: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """The words of an option: at most one plain VALUE for all modalities, and NAME=VALUE for single ones."""
    plain = [word for word in words if "=" not in word]
    if len(plain) > 1:
        raise CalmrlError(
            f"--{option} is given twice for all modalities: {plain[0]} and {plain[1]}", hint=f"use --{option} NAME=VALUE"
        )
    return (plain[0] if plain else None), assignments(option, [word for word in words if "=" in word])


# More patterns than a screen has lines are counted together.
_SHOWN_PATTERNS = 15


def show(description: dict[str, Any]) -> None:
    """Print what `calmrl_lab.store.description.describe` returns."""
    d, out = description, console.out
    out.print(
        f"[bold]{escape(d['path'])}[/bold]  dataset {escape(d['dataset'])}, {size(d['bytes'])}, digest {d['digest'][:16]}"
    )
    for name in ("licence", "attribution"):
        if d[name]:
            out.print(f"{name}: {escape(d[name])}", soft_wrap=True)
    splits = ", ".join(f"{count} {name}" for name, count in d["splits"].items())
    empty = f", {d['empty_items']} without any" if d["empty_items"] else ""
    out.print(f"{d['items']} items ({splits}) in {d['groups']} groups; {d['complete_items']} show every modality{empty}")
    for name, values in (("labels", d["labels"]), ("failed media", d["failures"])):
        if values:
            out.print(f"{name}: " + ", ".join(f"{escape(key)} ({count})" for key, count in values.items()))
    if d["heads"]:
        out.print("heads: " + ", ".join(f"{escape(key)} {shape}" for key, shape in d["heads"].items()))
    for m in d["modalities"]:
        out.print(f"{m['name']}: {escape(m['encoder'])} [dim]({escape(m['fingerprint'][:24])})[/dim]", soft_wrap=True)
    for table in (_modalities(d), _patterns(d), _co_observed(d)):
        out.print()
        console.show(table)


def size(count: int) -> str:
    """Bytes in words: 1.3 MB."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _table(title: str, *columns: str) -> Table:
    table = console.table(title=title)
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
