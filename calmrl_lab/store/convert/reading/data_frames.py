"""Data frames as JSON documents and dicts, in the orientations of pandas: by columns, by index, split, table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What columns of features are called before their number.
_PREFIX = re.compile(
    r"(x|v|f|d|e|c|dim|feat|feats|feature|features|emb|embed|embedding|embeddings|col|column|var|pc|comp|component)[ _.-]?",
    re.IGNORECASE,
)
_ID = re.compile(r"(.*[ _-])?ids?|.+ID", re.IGNORECASE)
# The column that the index of a frame becomes among the others.
INDEX = "index"


@dataclass(frozen=True)
class Frame:
    """A data frame by rows. `index`: the column that holds its index, or None if that only numbers the rows."""

    rows: Sequence[Mapping[Any, Any]]
    index: str | None = None


def data_frame(document: Mapping[Any, Any]) -> Frame | None:
    """The data frame that pandas' `to_json` or `to_dict` wrote as `document`; None if it is not one for certain.

    Orientations: `split` ({"columns": ..., "index": ..., "data": [[...]]}), `table` ({"schema": ..., "data": [{...}]}), `columns`
    ({column: {row: cell}}) and `index` ({row: {column: cell}}). The last two look alike: what tells them apart are texts, which fill a column and
    no row of numbers, row numbers 0, 1, 2, ..., and names that only columns have (an id, x0, x1, ...).

    >>> data_frame({"a": {"x0": 1.0, "x1": 2.0}, "b": {"x0": 3.0, "x1": 4.0}}).rows[1]
    {'index': 'b', 'x0': 3.0, 'x1': 4.0}
    """
    if frame := _split(document) or _table(document):
        return frame
    outer = _same_names(document)
    if outer is None:
        return None
    by_columns, by_index = _evidence(document, outer)
    if by_columns == by_index:
        return None
    rows = {key: {name: column[key] for name, column in document.items()} for key in outer[0]} if by_columns else document
    return _indexed(list(rows), list(rows.values()))


def looks_like_numbers_of_a_frame(document: Mapping[Any, Any]) -> bool:
    """Whether a document is {name: {name: number}} with the same inner names throughout: a frame, of rows or of columns.

    >>> looks_like_numbers_of_a_frame({"a": {"b": 1.0}, "c": {"b": 2.0}}), looks_like_numbers_of_a_frame({"a": {"b": [1.0]}})
    (True, False)
    """
    outer = _same_names(document)
    return outer is not None and all(_kind(cell) == "number" for part in outer for cell in part.values())


def _same_names(document: Mapping[Any, Any]) -> list[Mapping[Any, Any]] | None:
    """The parts of a document whose values are all mappings with the same names; None for another document."""
    outer = list(document.values())
    same = outer and all(isinstance(part, Mapping) and part and part.keys() == outer[0].keys() for part in outer)
    return outer if same else None


def _split(document: Mapping[Any, Any]) -> Frame | None:
    names, rows = document.get("columns"), document.get("data")
    if (
        not isinstance(names, list)
        or not isinstance(rows, list)
        or not set(document) <= {"columns", "index", "data", "index_names", "column_names"}
    ):
        return None
    if not all(isinstance(row, (list, tuple)) and len(row) == len(names) for row in rows):
        return None
    keys = document.get("index", list(range(len(rows))))
    if not isinstance(keys, list) or len(keys) != len(rows):
        return None
    # Columns of two levels are lists of names.
    named = ["/".join(map(str, name)) if isinstance(name, (list, tuple)) else name for name in names]
    return _indexed(keys, [dict(zip(named, row, strict=True)) for row in rows])


def _table(document: Mapping[Any, Any]) -> Frame | None:
    schema, rows = document.get("schema"), document.get("data")
    if not isinstance(schema, Mapping) or "fields" not in schema or not isinstance(rows, list):
        return None
    if not all(isinstance(row, Mapping) for row in rows):
        return None
    keys = schema.get("primaryKey")
    if isinstance(keys, list) and len(keys) == 1 and all(keys[0] in row for row in rows):
        name = keys[0]
        return _indexed([row[name] for row in rows], [{n: cell for n, cell in row.items() if n != name} for row in rows])
    return Frame(rows)


def _evidence(document: Mapping[Any, Any], outer: Sequence[Mapping[Any, Any]]) -> tuple[bool, bool]:
    """Whether something says that the outer names are columns, and whether something says that they are rows."""
    kinds = [[_kind(cell) for cell in part.values()] for part in outer]
    found = {kind for part in kinds for kind in part if kind}
    columns, rows = list(map(str, document)), list(map(str, outer[0]))
    if "text" in found and len(found) > 1:
        by_columns = all(len({kind for kind in part if kind}) <= 1 for part in kinds)
        by_index = all(len({kind for kind in cells if kind}) <= 1 for cells in zip(*kinds, strict=True))
        # Lists in groups that are named by items are arrays of these, and may differ in length.
        return by_columns, by_index and ("list" not in found or _are_row_numbers(columns))
    if "list" in found:
        return False, False
    if found == {"number"}:
        return _as_columns(columns) > _as_columns(rows), _as_columns(rows) > _as_columns(columns)
    return _are_row_numbers(rows) and not _are_row_numbers(columns), _are_row_numbers(columns) and not _are_row_numbers(rows)


def _as_columns(names: Sequence[str]) -> int:
    """How well names fit the columns of a frame of numbers: one is an id (4), x0, x1, ... (3), 0, 1, ... (2), anything numbered in order (1), or none of it."""
    if any(map(_ID.fullmatch, names)):
        return 4
    parts = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    family = [(part[1], int(part[2])) for part in parts if part]
    first = family[0][1] if family else 0
    if len(family) < 2 or first > 1 or family != [(family[0][0], first + number) for number in range(len(names))]:
        return 0
    return 3 if _PREFIX.fullmatch(family[0][0]) else 1 if family[0][0] else 2


def _are_row_numbers(names: Sequence[str]) -> bool:
    return list(names) == [str(number) for number in range(len(names))]


def _indexed(keys: Sequence[Any], rows: Sequence[Mapping[Any, Any]]) -> Frame:
    """The rows with their index as a column, unless it numbers rows that bring texts of their own."""
    texts = any(isinstance(cell, str) for row in rows[:1] for cell in row.values())
    if any(INDEX in row for row in rows[:1]) or (texts and _are_row_numbers(list(map(str, keys)))):
        return Frame(rows)
    return Frame([{INDEX: key, **row} for key, row in zip(keys, rows, strict=True)], INDEX)


def _kind(cell: Any) -> str | None:
    if cell is None or (isinstance(cell, float) and cell != cell):
        return None
    if isinstance(cell, str):
        return "text"
    return "number" if isinstance(cell, (int, float)) or getattr(cell, "ndim", None) == 0 else "list"
