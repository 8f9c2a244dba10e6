"""Lists of ids and tables of items (split, group, labels) from text, CSV, JSON lines or Parquet files: every value a string."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.array_files import as_strings, reading_errors


def read_ids(path: str | Path) -> Shaped[np.ndarray, " n"]:
    """Ids from a file: .json (a list), .npy (strings), or text with one id a line, taken as it stands."""
    path = _existing(path)
    with reading_errors(path):
        kind = path.suffix.lower()
        if kind == ".npy":
            ids = as_strings(np.load(path, allow_pickle=False))
            listed = ids.tolist() if ids.ndim == 1 else None
        elif kind == ".json":
            listed = json.loads(path.read_text("utf-8-sig"))
        else:
            # Not splitlines(): that also cuts at characters an id may well contain (form feed, U+2028).
            listed = path.read_text("utf-8-sig").removesuffix("\n").split("\n")
    if not isinstance(listed, list) or not all(isinstance(entry, str) for entry in listed):
        raise CalmrlError(f"'{path}' is not a list of ids")
    return np.array(listed, dtype=np.str_)


def read_table(path: str | Path) -> dict[str, list[str]]:
    """Column -> strings, from .csv, .tsv, .jsonl or .parquet; empty cells are ''. There must be a column 'id'."""
    path = _existing(path)
    with reading_errors(path):
        kind = path.suffix.lower()
        if kind in (".csv", ".tsv"):
            columns = _csv(path)
        elif kind == ".jsonl":
            columns = _json_lines(path)
        elif kind == ".parquet":
            import pyarrow.parquet as pq

            columns = {name: [_text(v) for v in values] for name, values in pq.read_table(path).to_pydict().items()}
        else:
            raise CalmrlError(f"'{path}' is not a table of items", hint="known: .csv, .tsv, .jsonl, .parquet")
    if "id" not in columns:
        raise CalmrlError(f"the table '{path}' has no column 'id'", hint=f"it has: {', '.join(columns) or 'no columns'}")
    if not columns["id"]:
        raise CalmrlError(f"the table '{path}' has no rows")
    return columns


def _existing(path: str | Path) -> Path:
    path = Path(path)
    with reading_errors(path):
        if not path.is_file():
            raise CalmrlError(f"the file '{path}' does not exist")
    return path


def _csv(path: Path) -> dict[str, list[str]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            names = next(reader, [])
            if len(set(names)) != len(names):
                raise CalmrlError(f"the table '{path}' names a column twice: {', '.join(names)}")
            columns: dict[str, list[str]] = {name: [] for name in names}
            for row in reader:
                if not row:
                    continue
                if len(row) != len(names):
                    raise CalmrlError(f"'{path}' line {reader.line_num} has {len(row)} cells; the header has {len(names)}")
                for name, cell in zip(names, row, strict=True):
                    columns[name].append(cell)
        except csv.Error as error:
            raise CalmrlError(f"'{path}' line {reader.line_num}: {error}") from None
    return columns


def _json_lines(path: Path) -> dict[str, list[str]]:
    records = []
    for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise CalmrlError(f"'{path}' line {number} is not a JSON object")
        records.append(record)
    names = list(dict.fromkeys(name for record in records for name in record))
    return {name: [_text(record.get(name)) for record in records] for name in names}


def _text(value: object) -> str:
    return "" if value is None else str(value)
