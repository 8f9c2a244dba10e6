"""Tables as people have them: CSV with ',', ';' or tabs, a JSON list of objects, JSON lines, Parquet; rows with their line numbers.

One reader for the tables of items of `store import`, the manifests of `extract`, and files of annotations.
"""

from __future__ import annotations

import codecs
import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.reading.data_frames import data_frame
from calmrl_lab.store.convert.reading.foreign_files import remedy
from calmrl_lab.store.convert.reading.gzip_files import open_plain, plain_suffix

ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet")
# Marks that say how a text is encoded; a spreadsheet writes "Unicode text" in UTF-16.
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
# How pandas, R and spreadsheets write a value that is missing.
MISSING_WORDS = frozenset(
    ("nan", "NaN", "NAN", "-nan", "-NaN", "None", "NONE", "null", "NULL", "NA", "N/A", "n/a", "<NA>", "NaT", "#N/A", "#NA", "#N/A N/A")
)  # fmt: skip
_DELIMITERS = (",", ";", "\t", "|")
# A caption, or a vector written as text, may be longer than the 128 kB that csv allows at first.
_LONGEST_CELL = 1 << 30


@dataclass(frozen=True)
class Record:
    """A row of a table: `values` by column as the file has them (str in CSV), and where it stands (`line 3`, `entry 2`)."""

    where: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """The rows of a table. `names`: its columns, in order of appearance. `is_json`: whether cells have types; in CSV all are text."""

    path: Path
    names: Sequence[str]
    rows: Sequence[Record]
    is_json: bool = False

    def column(self, name: str) -> list[Any]:
        """The cells of a column; None where a row has none."""
        return [row.values.get(name) for row in self.rows]


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, white space, or a word that stands for NaN.

    >>> [is_missing(cell) for cell in (None, float("nan"), " ", "NaN", "None", "dog", 0)]
    [True, True, True, True, True, False, False]
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and (not value.strip() or value.strip() in MISSING_WORDS)


def is_missing_word(value: Any) -> bool:
    """Whether a cell is a text that stands for NaN: what a reader should hear of, in case it was meant."""
    return isinstance(value, str) and value.strip() in MISSING_WORDS


def read_records(path: Path) -> Records:
    """The rows of a table, whatever its form; what is JSON is told by its first character, not by its ending.

    Raises CalmrlError naming the line for a table that cannot be read.
    """
    if plain_suffix(path) == ".parquet":
        return _parquet(path)
    text = read_text(path)
    start = text.lstrip()[:1]
    lines = plain_suffix(path) in (".jsonl", ".ndjson")
    a_line_each = lines and text.strip().count("\n") and text.lstrip().split("\n", 1)[0].rstrip().endswith("]")
    if (start == "[" and not a_line_each) or (start == "{" and not lines and _is_one_document(text)):
        return _json_document(path, text)
    if start == "{" or lines:
        return _json_lines(path, text)
    return _csv(path, text)


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or what a byte order mark says, compressed by gzip or not. Ends of lines are those of Unix then."""
    try:
        with open_plain(path) as file:
            data = file.read()
        encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise CalmrlError(
            f"'{path}' is not {error.encoding.upper()}: {error.reason} at byte {error.start}",
            hint=remedy(path) or "save it as UTF-8 (in a spreadsheet: CSV UTF-8)",
        ) from None
    except FileNotFoundError:
        raise CalmrlError(f"the file '{path}' does not exist", hint="look at the path") from None
    except OSError as error:
        raise CalmrlError(
            f"'{path}' cannot be read: {(error.strerror or 'input error').lower()}",
            hint="look at its permissions, and at the disk",
        ) from None


def parse_json(path: Path, text: str) -> Any:
    """The document of a JSON file; CalmrlError with the line of what is wrong."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CalmrlError(
            f"'{path}' is no valid JSON: {error.msg} in line {error.lineno}, column {error.colno}",
            hint="write it again, or download it again: a git-lfs pointer or an HTML page looks like this",
        ) from None
    except RecursionError:
        raise CalmrlError(
            f"'{path}' is no valid JSON: its brackets are nested too deep", hint="write it again, or download it again"
        ) from None
    except ValueError as error:
        raise CalmrlError(
            f"'{path}' is no valid JSON: {str(error)[:80]}", hint="write it again, or download it again"
        ) from None


def _is_one_document(text: str) -> bool:
    """Whether text that begins with '{' is one object over several lines, and not one object a line."""
    first = text.lstrip().split("\n", 1)
    try:
        json.loads(first[0])
    except (ValueError, RecursionError):
        return True
    return len(first) == 1 or not first[1].strip()


def _json_document(path: Path, text: str) -> Records:
    document = parse_json(path, text)
    if isinstance(document, dict):
        document = _rows_of_object(document)
    if not isinstance(document, list):
        raise CalmrlError(
            f"'{path}' holds one JSON {type(document).__name__}", hint="expected a list of objects, or one object a line"
        )
    rows = []
    for number, entry in enumerate(document, start=1):
        if not isinstance(entry, dict):
            raise CalmrlError(
                f"'{path}', entry {number} is a {type(entry).__name__}, expected an object with the columns of a row",
                hint="write a list of objects",
            )
        rows.append(Record(f"entry {number}", entry))
    return Records(path, _names(rows), rows, is_json=True)


def _rows_of_object(document: Mapping[str, Any]) -> Any:
    """The rows of an object: of a data frame, its only list of objects, its objects with their keys as `id`, or itself as the only row."""
    if (frame := data_frame(document)) is not None:
        index = frame.index
        return [
            dict(row) if index is None else {"id": row[index], **{n: v for n, v in row.items() if n != index}}
            for row in frame.rows
        ]
    lists = [
        value for value in document.values() if isinstance(value, list) and value and all(isinstance(v, dict) for v in value)
    ]
    if len(lists) == 1 and not any(key in document for key in ("id", "ids")):
        return lists[0]
    if document and all(isinstance(value, dict) for value in document.values()):
        return [{"id": key, **value} for key, value in document.items()]
    lengths = {len(value) if isinstance(value, list) else -1 for value in document.values()}
    if len(lengths) == 1 and -1 not in lengths and len(document) > 1:
        return [dict(zip(document, values, strict=True)) for values in zip(*document.values(), strict=True)]
    return [dict(document)]


def _json_lines(path: Path, text: str) -> Records:
    rows = []
    # Not splitlines(): that also cuts at characters a text may well contain (form feed, U+2028).
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CalmrlError(
                f"'{path}', line {number} is no JSON: {str(error)[:80]}", hint="write it again, one JSON object on each line"
            ) from None
        if not isinstance(values, dict):
            raise CalmrlError(
                f"'{path}', line {number} is a {type(values).__name__}, expected an object with 'id' (it is not a JSON object)",
                hint="write one JSON object on each line",
            )
        rows.append(Record(f"line {number}", values))
    return Records(path, _names(rows), rows, is_json=True)


def _names(rows: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.values))


def _parquet(path: Path) -> Records:
    import pyarrow.parquet as pq

    from calmrl_lab.store.convert.reading.reading_errors import reading_errors

    with reading_errors(path):
        if not path.is_file():
            raise CalmrlError(f"the file '{path}' does not exist", hint="look at the path")
        table = pq.read_table(path)
        names = [
            name
            for name in table.column_names
            if not name.startswith("__index_level_") or str(table[name].type).endswith("string")
        ]
        columns = [table[name].to_pylist() for name in names]
    rows = [
        Record(f"row {number}", dict(zip(names, cells, strict=True))) for number, cells in enumerate(zip(*columns, strict=True))
    ]
    return Records(path, names, rows, is_json=True)


def csv_rows(path: Path, text: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of a CSV file with ',', ';', '|' or tabs, which the first line decides; lines without anything in their cells are left out.

    Comments at the beginning (`#`) and the line `sep=;` of spreadsheets are left out too; a heading that is a comment (np.savetxt) is the heading.
    """
    skipped, text = _without_preface(read_text(path) if text is None else text)
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        delimiter = "\t" if plain_suffix(path) == ".tsv" else delimiter_of(text)
        first = next((line for line in text.split("\n") if line.strip()), "").split(delimiter)
        # "id, x0, x1": the spaces belong to the delimiter.
        spaced = delimiter == " " or (len(first) > 1 and all(cell.startswith(" ") for cell in first[1:]))
        reader = csv.reader(_lines(text), delimiter=delimiter, strict=True, skipinitialspace=spaced)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num + skipped, cells
    except csv.Error as error:
        raise CalmrlError(
            f"'{path}' line {reader.line_num} cannot be read: {error}", hint="quotes inside of a cell are doubled"
        ) from None
    finally:
        csv.field_size_limit(before)


def _without_preface(text: str) -> tuple[int, str]:
    """The lines of a CSV file from its heading on, and how many stand before them."""
    first, _, rest = text.partition("\n")
    if re.fullmatch(r'"?sep=.?"?', first.strip(" ")):
        return 1, rest
    lines = text.split("\n", 200)
    comments = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    if not comments or comments == len(lines):
        return 0, text
    heading, below = lines[comments - 1].lstrip("# "), lines[comments]
    delimiter = delimiter_of(below)
    if heading.count(delimiter) == below.count(delimiter) > 0:
        return comments - 1, "\n".join([heading, *lines[comments:]])
    return comments, "\n".join(lines[comments:])


def _lines(text: str) -> Iterator[str]:
    return (f"{line}\n" for line in text.removesuffix("\n").split("\n"))


def delimiter_of(text: str) -> str:
    """What divides the cells of the first line that has any text: the most frequent of ',', ';', tab and '|' outside of quotes.

    A space, where all that stands outside of quotes are spaces, as in the tables that R writes.
    """
    text = _without_preface(text)[1] if text.startswith(("#", "sep=", '"sep=')) else text
    first = next((line for line in text.split("\n") if line.strip()), "")
    outside = "".join(part for number, part in enumerate(first.split('"')) if number % 2 == 0)
    if outside.isspace() and "\t" not in outside.strip("\n"):
        return " "
    return max(_DELIMITERS, key=lambda delimiter: (outside.count(delimiter), -_DELIMITERS.index(delimiter)))


def has_row_names(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether every row has one cell more than the heading, in front, because R writes no heading for its row names.

    They are numbers from 1 on, or names where no column is the id. Beside an id, a cell more may as well come from a delimiter in a text without quotes.

    >>> has_row_names(["x0"], [["a", "0.5"]]), has_row_names(["id", "x0"], [["a", "b", "0.5"]]), has_row_names(["id"], [["1", "a"], ["2", "b"]])
    (True, False, True)
    """
    if not rows or not all(len(cells) == len(heading) + 1 for cells in rows):
        return False
    counted = all(cells[0] == str(number) for number, cells in enumerate(rows, start=1))
    return counted or "id" not in {name.strip().lower() for name in heading}


def _csv(path: Path, text: str) -> Records:
    _, heading = next(listed := csv_rows(path, text), (0, []))
    lines = list(listed)
    if has_row_names(heading, [cells for _, cells in lines]):
        heading = ["", *heading]
    names = [name.strip() for name in heading]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        said = (
            f"names a column twice: the column {twice[0]!r} is there twice"
            if twice[0]
            else "has more than one column without a name"
        )
        raise CalmrlError(f"the table '{path}' {said}", hint="rename one of them")
    rows = []
    for number, cells in lines:
        if len(cells) != len(names):
            raise CalmrlError(
                f"'{path}', line {number} has {len(cells)} columns, the heading has {len(names)}",
                hint="quote cells that hold the delimiter",
            )
        rows.append(Record(f"line {number}", dict(zip(names, cells, strict=True))))
    return Records(path, names, rows)
