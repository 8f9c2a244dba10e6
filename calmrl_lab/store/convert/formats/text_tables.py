"""Numbers as text: CSV, TSV, JSON lines and JSON, compressed by gzip or not."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.formats._folders import no_folder
from calmrl_lab.store.convert.reading.content import Content, Field, as_array, column_of, content_of
from calmrl_lab.store.convert.reading.gzip_files import plain_suffix
from calmrl_lab.store.convert.records import (
    MISSING_WORDS,
    csv_rows,
    delimiter_of,
    has_row_names,
    parse_json,
    read_records,
    read_text,
)


@formats.register("csv")
class Csv:
    """CSV (.csv, .tsv, .txt) with ',', ';' or tabs: an id and numbered columns, or a column of lists"""

    endings: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
    is_folder = staticmethod(no_folder)

    @staticmethod
    def read(path: Path) -> Content:
        return Csv.read_together(path, [path])

    @staticmethod
    def read_together(path: Path, files: Sequence[Path]) -> Content:
        """The content of files that are parts of one table; each has the heading, or only the first, or none."""
        names, body = _rows_of(files[0])
        for file in files[1:]:
            others, rows = _rows_of(file)
            if others is not None and others != names and (rows or ["", *others] != names):
                raise CalmrlError(
                    f"'{file}' has other columns ({', '.join(others[:6])}) than '{files[0].name}' ({', '.join(names or ['no heading'])[:120]})",
                    hint="parts of one table have the same columns; move what is no part out of the folder",
                )
            if rows and body and len(rows[0][1]) != len(body[0][1]):
                raise CalmrlError(
                    f"'{file}' has {len(rows[0][1])} columns, '{files[0].name}' has {len(body[0][1])}",
                    hint="parts of one table have the same columns; move what is no part out of the folder",
                )
            body = [*body, *rows]
        width = len(names) if names is not None else len(body[0][1])
        if names is None:
            names = _invented([cells for _, cells in body[:20]])
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise CalmrlError(f"'{path}' names the column {twice!r} twice", hint="rename one of them")
        columns = [[cells[place] for _, cells in body] for place in range(width)]
        notes = []
        if delimiter_of(read_text(files[0])) != ",":
            pointed = [_with_points(cells) for cells in columns]
            if any(new is not old for new, old in zip(pointed, columns, strict=True)):
                columns, notes = pointed, ["commas in its numbers are decimal points"]
        arrays = dict(zip(names, (_column(path, name, cells) for name, cells in zip(names, columns, strict=True)), strict=True))
        # pandas writes its index as a first column without a name.
        index = "" if names and names[0] == "" and arrays[""].dtype.kind == "U" else None
        return Content(
            path,
            {name: Field.of(name, array, printed=True) for name, array in arrays.items()},
            table=True,
            nested=False,
            index=index,
            notes=notes,
        )


@formats.register("json")
class Json:
    """JSON lines or JSON (.jsonl, .json): {"id": ..., "features": [...]} a row, or {id: [...]}"""

    endings: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
    is_folder = staticmethod(no_folder)

    @staticmethod
    def read(path: Path) -> Content:
        return content_of(path, _document(path))

    @staticmethod
    def read_together(path: Path, files: Sequence[Path]) -> Content:
        """The content of files that are parts of one table: their rows, or the items of all, {id: [...]}."""
        documents = [_document(file) for file in files]
        if all(isinstance(document, list) and all(isinstance(row, dict) for row in document) for document in documents):
            return content_of(path, [row for document in documents for row in document if row])
        whole: dict[str, Any] = {}
        for file, document in zip(files, documents, strict=True):
            if not isinstance(document, dict):
                raise CalmrlError(
                    f"'{file}' holds a list of {type(document[0]).__name__ if document else 'nothing'}, and parts hold rows with ids",
                    hint="expected {id: [numbers]}, or a list of objects, in every part",
                )
            again = next((name for name in document if name in whole), None)
            if again is not None:
                raise CalmrlError(
                    f"'{file}' has {again!r} again, which another part of '{path}' has too",
                    hint="an item stands in one part; name the file that is meant, or move the others out of the folder",
                )
            whole |= document
        return content_of(path, whole)


def is_text_table(path: Path) -> bool:
    """Whether a file is one of the formats of this module, by its ending."""
    return path.name.lower().endswith((*Csv.endings, *Json.endings))


def only_numbers(path: Path) -> np.ndarray | None:
    """The numbers of a text that holds nothing else, [R, C] float64, without a heading 0, 1, 2, ...; None for other texts.

    JSON may be a list of numbers, or of lists of them.
    """
    if plain_suffix(path) in (".jsonl", ".ndjson"):
        return None
    if plain_suffix(path) == ".json":
        document = parse_json(path, read_text(path))
        if not isinstance(document, list) or not document or isinstance(document[0], dict):
            return None
        array = as_array(document)
        return np.atleast_2d(array.astype(np.float64)) if array.dtype.kind in "iuf" and array.ndim in (1, 2) else None
    rows = [_by_spaces(cells) for _, cells in csv_rows(path)]
    if len(rows) > 1 and len(rows[0]) > 1 and rows[0] == [str(number) for number in range(len(rows[0]))]:
        rows = rows[1:]
    rows = [cells[:-1] if len(cells) > 1 and not cells[-1].strip() else cells for cells in rows]
    if (
        not rows
        or len({len(cells) for cells in rows}) > 1
        or not all(_is_number(cell.strip()) for cells in rows for cell in cells)
    ):
        return None
    return np.array(rows).astype(np.float64)


def _rows_of(path: Path) -> tuple[list[str] | None, list[tuple[int, list[str]]]]:
    """The heading of a CSV file, or None, and its lines with their numbers."""
    lines = [(number, _by_spaces(cells)) for number, cells in csv_rows(path)]
    if not lines:
        raise CalmrlError(f"'{path}' is empty", hint="expected a heading (id, x0, x1, ...) and a line for every item")
    lines = _without_counts(_spaced_heading(lines))
    names = _heading(lines[0][1])
    body = lines if names is None else lines[1:]
    columns = len(lines[0][1])
    if names is not None and has_row_names(names, [cells for _, cells in body]):
        names, columns = ["", *names], columns + 1
    for number, cells in body:
        if len(cells) != columns:
            raise CalmrlError(
                f"'{path}', line {number} has {len(cells)} columns, the first has {columns}",
                hint="quote cells that hold the delimiter"
                if number != body[-1][0]
                else "it is the last line: download the file again, or write it again",
            )
    return names, body


def _spaced_heading(lines: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Lines whose heading is divided by spaces as the lines below it are."""
    heading = lines[0][1][0].split() if len(lines[0][1]) == 1 else []
    if len(heading) > 1 and len(lines) > 1 and all(len(cells) == len(heading) for _, cells in lines[1:]):
        return [(lines[0][0], heading), *lines[1:]]
    return lines


def _without_counts(lines: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Lines without a first one that counts them and their numbers (`400000 300`), as word2vec writes it."""
    counts = (str(len(lines) - 1), str(len(lines[-1][1]) - 1))
    return lines[1:] if len(lines) > 1 and tuple(lines[0][1]) == counts and len(lines[-1][1]) != 2 else lines


def _document(path: Path) -> Any:
    """What a JSON file holds; a list of objects, one for each line, for JSON lines."""
    text = read_text(path)
    if text.lstrip()[:1] in ("{", "[") and plain_suffix(path) == ".json":
        document = parse_json(path, text)
        if isinstance(document, dict) or not (document and all(isinstance(entry, dict) for entry in document)):
            return document
    rows = [row.values for row in read_records(path).rows]
    keys = [name for row in rows for name in row]
    if len(keys) == len(rows) == len(set(keys)) > 1 and all(isinstance(v, list) for row in rows for v in row.values()):
        # One item on each line: {id: [...]}.
        return {name: value for row in rows for name, value in row.items()}
    return rows or [{}]


def _by_spaces(cells: list[str]) -> list[str]:
    """The cells of a line that only spaces divide, as np.savetxt writes them."""
    parts = cells[0].split() if len(cells) == 1 else cells
    return parts if len(cells) == 1 and len(parts) > 1 and all(map(_is_number, parts[1:])) else cells


def _heading(cells: Sequence[str]) -> list[str] | None:
    """The names of the columns; None if the first line is data: numbers that are not 0, 1, 2, ..."""
    names = [cell.strip() for cell in cells]
    numbers = [name for name in names if _is_number(name)]
    if numbers == [str(n) for n in range(len(numbers))] or len(numbers) <= len(names) / 2:
        return names
    return None


def _invented(body: Sequence[Sequence[str]]) -> list[str]:
    """Names for the columns of a file without heading: the one that holds no numbers is the id."""
    texts = [place for place in range(len(body[0])) if not all(_is_number(cells[place].strip()) for cells in body)]
    names = [f"x{number}" for number in range(len(body[0]) - len(texts))]
    for order, place in enumerate(texts):
        names.insert(place, "id" if order == 0 else f"text{order}")
    return names


def _column(path: Path, name: str, cells: Sequence[str]) -> np.ndarray:
    stripped = [cell.strip() for cell in cells]
    gaps = [not cell or cell in MISSING_WORDS for cell in stripped]
    first = next((cell for cell, gap in zip(stripped, gaps, strict=True) if not gap), "")
    if first[:1] == "[" or (
        all(gap or _is_long_list(cell) for cell, gap in zip(stripped, gaps, strict=True)) and not all(gaps)
    ):
        return column_of(path, name, [_list(path, name, cell) for cell in stripped])
    if not all(gaps):
        try:
            if any(gaps) or not all(map(_is_whole, stripped)):
                values = [float("nan") if gap else _number(cell) for cell, gap in zip(stripped, gaps, strict=True)]
                return np.array(values, dtype=np.float64)
            # Leading zeros are no number: 0001 is a name.
            if not any(cell.lstrip("+-")[:1] == "0" and len(cell.lstrip("+-")) > 1 for cell in stripped):
                return np.array([int(cell) for cell in stripped], dtype=np.int64)
        except (ValueError, OverflowError):
            pass
    return np.array(cells, dtype=np.str_)


def _list(path: Path, name: str, cell: str) -> Any:
    """The numbers of a cell like [0.1, 0.2] or, as numpy prints, [0.1 0.2]; None for a cell that says it is missing."""
    if not cell or cell in MISSING_WORDS:
        return None
    if "..." in cell:
        raise CalmrlError(
            f"'{path}': numbers of the column '{name}' were cut short to '...' when the file was written",
            hint="write the features as .npy or Parquet",
        )
    try:
        return json.loads(cell)
    except ValueError:
        pass
    try:
        return [float(number) for number in re.split(r"[\s,;]+", cell.strip("[] \t"))]
    except ValueError:
        raise CalmrlError(
            f"'{path}': a cell of '{name}' is no list of numbers: {cell[:40]!r}", hint="write the features as .npy or Parquet"
        ) from None


def _is_long_list(cell: str) -> bool:
    """Whether a cell is three numbers or more, divided by spaces, commas or semicolons."""
    parts = re.split(r"[\s,;]+", cell)
    return len(parts) > 2 and all(map(_is_number, parts))


_COMMA = re.compile(r"[+-]?\d+(,\d+)?([eE][+-]?\d+)?")


def _with_points(cells: list[str]) -> list[str]:
    """A column of numbers that are written with decimal commas, with points; any other column as it is."""
    present = [cell.strip() for cell in cells if cell.strip() and cell.strip() not in MISSING_WORDS]
    if not any("," in cell for cell in present) or not all(map(_COMMA.fullmatch, present)):
        return cells
    return [cell.replace(",", ".") for cell in cells]


def _number(cell: str) -> float:
    return float(cell)


_WHOLE = re.compile(r"[+-]?\d{1,18}")


def _is_whole(cell: str) -> bool:
    return bool(_WHOLE.fullmatch(cell)) and cell.isascii()


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return cell.isascii() and "_" not in cell and cell.lower().lstrip("+-") not in ("nan", "inf", "infinity")
