"""Lists of ids and tables of items (split, group, labels), from text, CSV, JSON or Parquet: every value a string, what is missing empty."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.reading.content import spelled
from calmrl_lab.store.convert.reading.gzip_files import plain_suffix
from calmrl_lab.store.convert.reading.reading_errors import reading_errors
from calmrl_lab.store.convert.reading.row_names import NO_ID, is_describing, is_id, is_identifying
from calmrl_lab.store.convert.records import ENDINGS, Records, csv_rows, is_missing, is_missing_word, read_records, read_text
from calmrl_lab.store.splits import split_named


@dataclass(frozen=True)
class ItemTable:
    """What a table says about items: `ids` [N], columns of N texts ('' where a cell is missing), and sentences on what was made of it."""

    path: Path
    ids: list[str]
    columns: dict[str, list[str]]
    said: list[str] = field(default_factory=list)


def read_ids(path: str | Path, expected: int | None = None) -> Shaped[np.ndarray, " n"]:
    """Ids from a file: .json (a list), .npy (strings or whole numbers), .csv, .tsv or .parquet with an id column, or text with one id per line.

    `expected`: how many there should be; a first line that is one too many and the name of a column is a heading.
    """
    path = _existing(path)
    with reading_errors(path):
        kind = plain_suffix(path)
        if kind == ".npy":
            array = np.load(path, allow_pickle=False)
            listed: Any = (
                [spelled(value) for value in array.tolist()] if array.ndim == 1 and array.dtype.kind in "USiu" else None
            )
        elif kind == ".json":
            listed = json.loads(read_text(path))
            if isinstance(listed, list) and all(isinstance(entry, int) and not isinstance(entry, bool) for entry in listed):
                listed = [str(entry) for entry in listed]
        elif kind == ".parquet" or (kind in (".csv", ".tsv") and len(next(csv_rows(path), (0, []))[1]) > 1):
            records = read_records(path)
            listed = _ids_of(records, id_column(records, None))
        else:
            # Not splitlines(): that also cuts at characters an id may well contain (form feed, U+2028).
            listed = read_text(path).removesuffix("\n").replace("\r\n", "\n").removesuffix("\r").split("\n")
            if expected is not None and len(listed) == expected + 1 and is_identifying(listed[0]):
                listed = listed[1:]
    if not isinstance(listed, list) or not all(isinstance(entry, str) for entry in listed):
        raise CalmrlError(
            f"'{path}' is not a list of ids", hint="expected texts or whole numbers, one for every row of features"
        )
    return np.array(listed, dtype=np.str_)


def read_table(path: str | Path, id_name: str | None = None) -> ItemTable:
    """The items of a table: .csv (',', ';' or tabs), .tsv, .json, .jsonl or .parquet.

    id_name: the column of ids; default 'id', or the only one whose name says so (video_id, filename, ...). Cells that hold nothing, None,
    NaN or a word that stands for it are ''. Rows of one id are one item; columns in which they differ are left out. Splits are spelled
    train, validation, test. Raises CalmrlError naming the row of what cannot be used.
    """
    path = _existing(path)
    if plain_suffix(path) not in ENDINGS:
        raise CalmrlError(
            f"'{path}' is not a table of items", hint=f"known: {', '.join(ENDINGS)}; text also compressed by gzip"
        )
    records = read_records(path)
    if not records.rows:
        raise CalmrlError(f"the table '{path}' has no rows", hint="expected a heading and a line for every item")
    id_name = id_column(records, id_name)
    ids = _ids_of(records, id_name)
    others = [name for name in records.names if name not in (id_name, "") and not name.startswith(("__index_", "Unnamed:"))]
    columns = {name: [_text(cell) for cell in records.column(name)] for name in others}
    said = [f"{path.name}: the ids are those of the column '{id_name}'"] if id_name != "id" else []
    words = sum(is_missing_word(cell) for name in others for cell in records.column(name))
    if words:
        said.append(f"{path.name}: {words} cells are words like NaN or None and count as missing")
    table = _one_row_an_item(ItemTable(path, ids, columns, said))
    return _with_known_splits(table, records)


def columns_of(path: str | Path) -> Sequence[str]:
    """The names of the columns of a table."""
    return read_records(_existing(path)).names


def id_column(records: Records, wanted: str | None) -> str:
    """The column that holds the ids: `wanted`, or 'id', or the only one whose name says so. CalmrlError if that is not clear."""
    names = list(records.names)
    if wanted is not None:
        if wanted in names:
            return wanted
        raise CalmrlError(f"the table '{records.path}' has no column '{wanted}'", hint=f"it has: {', '.join(names)}")
    for name in ("id", "ids", "ID", "Id"):
        if name in names:
            return name
    # An id under another name, before paths of files.
    close = [name for name in names if is_id(name)]
    likely = close or [name for name in names if is_identifying(name) and not is_describing(name)]
    if len(likely) == 1:
        return likely[0]
    if len(likely) > 1:
        raise CalmrlError(
            f"the table '{records.path}' has {len(likely)} columns that may be the id: {', '.join(likely)}",
            hint="say which: --id-column NAME",
        )
    raise CalmrlError(
        f"the table '{records.path}' has no column 'id'",
        hint=f"it has: {', '.join(names) or 'no columns'}; another one: --id-column NAME",
    )


def _ids_of(records: Records, name: str) -> list[str]:
    ids = []
    for row in records.rows:
        value = row.values.get(name)
        text = "" if value is None else spelled(value)
        if text.strip() in NO_ID:
            raise CalmrlError(
                f"'{records.path}', {row.where} has no id ('{name}' holds {text!r})",
                hint="give every row an id, or leave it out",
            )
        ids.append(text)
    return ids


def _text(cell: Any) -> str:
    return "" if is_missing(cell) else spelled(cell)


def _one_row_an_item(table: ItemTable) -> ItemTable:
    """The table with one row for every id; what differs between rows of one id is no property of the item."""
    first: dict[str, int] = {}
    rows = [first.setdefault(name, number) for number, name in enumerate(table.ids)]
    if len(first) == len(table.ids):
        return table
    kept, said = {}, [f"{table.path.name}: {len(table.ids)} rows are {len(first)} items; rows of one id are one item"]
    for name, cells in table.columns.items():
        odd = next((number for number, home in enumerate(rows) if cells[number] != cells[home]), None)
        if odd is None:
            kept[name] = [cells[number] for number in first.values()]
        elif name in ("split", "group"):
            raise CalmrlError(
                f"the table '{table.path}' puts the item {table.ids[odd]!r} into the {name}s {cells[rows[odd]]!r} and {cells[odd]!r}",
                hint="an item has one split and one group; give the two items different ids",
            )
        else:
            said.append(f"{table.path.name}: '{name}' differs between rows of one item and is left out")
    return ItemTable(table.path, list(first), kept, [*table.said, *said])


def _with_known_splits(table: ItemTable, records: Records) -> ItemTable:
    given = table.columns.get("split")
    if given is None:
        return table
    if not any(given):
        columns = {name: cells for name, cells in table.columns.items() if name != "split"}
        return ItemTable(
            table.path, table.ids, columns, [*table.said, f"{table.path.name}: no item has a split, so splits are drawn"]
        )
    table.columns["split"] = known_splits(given, table.ids, f"the table '{table.path}'")
    return table


def known_splits(given: Sequence[str], ids: Sequence[str], where: str) -> list[str]:
    """Splits as people spell them (Train, val, dev) as train, validation, test; CalmrlError for others, and for items without any."""
    missing = [name for name, split in zip(ids, given, strict=True) if is_missing(split)]
    if missing:
        raise CalmrlError(
            f"{where} gives no split to {len(missing)} of {len(ids)} items, the first is {str(missing[0])!r}",
            hint="give each a split, or leave the column out to have all drawn",
        )
    found = [split_named(split) for split in given]
    if None in found:
        odd = found.index(None)
        raise CalmrlError(
            f"{where}: item {str(ids[odd])!r} has the split {str(given[odd])!r}",
            hint="expected train, validation (val, dev) or test",
        )
    return [split for split in found if split is not None]


def _existing(path: str | Path) -> Path:
    path = Path(path)
    with reading_errors(path):
        if not path.is_file():
            raise CalmrlError(f"the file '{path}' does not exist", hint="look at the path")
    return path
