"""Folders of parts: one table, or one set of arrays, cut into several files (part-0.csv, part-1.csv, ...)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.formats._folders import data_files, read_file
from calmrl_lab.store.convert.formats.text_tables import Csv, Json, is_text_table, only_numbers
from calmrl_lab.store.convert.reading.content import Content, Field, spelled
from calmrl_lab.store.convert.reading.reading_errors import reading_errors
from calmrl_lab.store.convert.reading.row_names import is_id
from calmrl_lab.store.convert.reading.source import StackedRows

# How tools call the parts that they write.
_PART = re.compile(r"(.*[-_. ])?(part|shard|chunk|batch|block|piece)s?[-_. ]?\d+.*|.*\d+-of-\d+.*", re.IGNORECASE)
_OF = re.compile(r"(\d+)-of-(\d+)")
_NUMBER = re.compile(r"\d+")


@formats.register("part-folder")
class PartFolder:
    """Folder of parts (part-0.csv, part-1.csv, ...) as Spark, pandas and loops over batches write them"""

    endings: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def is_folder(path: Path) -> bool:
        return are_parts(data_files(path))

    @staticmethod
    def read(path: Path) -> Content:
        return read_parts(path, data_files(path))


def are_parts(files: Sequence[Path]) -> bool:
    """Whether files hold the rows of several items each, and not one item each."""
    if not files or files[0].suffix.lower() in (".npy", ".parquet"):
        return False
    files = _with_rows(files)
    named = all(_PART.fullmatch(file.name) for file in files)
    text = is_text_table(files[0])
    try:
        if text and only_numbers(files[0]) is not None:
            return named
        first = read_file(files[0])
        if _names_rows(first):
            return True
        if len(files) == 1 or text:
            return named
        return named or not set(_arrays(first)) & set(_arrays(read_file(files[1])))
    except CalmrlError:
        # Texts may be anything: a readme, a list of settings.
        if files[0].suffix.lower() in (".txt", ".json"):
            return False
        raise


def _arrays(content: Content) -> dict[str, Field]:
    return {name: field for name, field in content.fields.items() if field.kind == "numbers" and field.shape}


def _names_rows(content: Content) -> bool:
    """Whether a file has ids for the rows of its arrays."""
    lengths = {field.shape[0] for field in _arrays(content).values() if content.table or len(field.shape) > 1}
    ids = [f for f in content.fields.values() if f.kind == "strings" or is_id(f.name)]
    return any(len(f.shape) == 1 and f.shape[0] in lengths for f in ids)


def read_parts(folder: Path, files: Sequence[Path]) -> Content:
    """The content of all files as if it stood in one, in the order of their numbers.

    Raises CalmrlError naming the file for parts that do not fit together, for an item in two parts, and for a part of `0-of-3` that is missing.
    """
    _check_whole(folder, files)
    files = _with_rows(files)
    # What a column is, numbers or names, is decided over all rows.
    for kind in (Csv, Json):
        if files[0].name.lower().endswith(kind.endings):
            return kind.read_together(folder, files)
    contents = []
    for file in files:
        with reading_errors(file):
            contents.append(read_file(file))
    return joined(folder, files, contents)


def joined(folder: Path, files: Sequence[Path], contents: Sequence[Content]) -> Content:
    """The content of several files: rows of arrays that all have, one after the other, or the items of all."""
    first = contents[0]
    fields: dict[str, Field] = {}
    if all(content.fields.keys() == first.fields.keys() for content in contents):
        if len(contents) > 1 and not first.table and not _names_rows(first) and len(_arrays(first)) > 1:
            raise _twice(folder, next(iter(_arrays(first))), files)
        for name in first.fields:
            fields[name] = _column(folder, name, files, [content.fields[name] for content in contents])
    else:
        for file, content in zip(files, contents, strict=True):
            if content.table or _names_rows(content):
                odd = sorted(content.fields.keys() ^ first.fields.keys())
                if odd:
                    raise CalmrlError(
                        f"'{file}' has other columns than '{files[0].name}': {', '.join(odd[:4])} stand in one of them only",
                        hint="parts of one table have the same columns; move what is no part out of the folder",
                    )
            for name, field in content.fields.items():
                if name in fields:
                    raise _twice(folder, name, files)
                fields[name] = field
    return Content(folder, fields, first.table, first.ordered, first.nested, first.index, [*first.notes, *gaps(files)])


def _twice(folder: Path, name: str, files: Sequence[Path]) -> CalmrlError:
    return CalmrlError(
        f"'{folder}' has the array {spelled(name)!r} in more than one of its parts ({files[0].name}, {files[-1].name})",
        hint="an item stands in one part; name the file that is meant, or move the others out of the folder",
    )


def _column(folder: Path, name: str, files: Sequence[Path], parts: Sequence[Field]) -> Field:
    """One array of all parts."""
    if not parts[0].shape:
        return parts[0]
    for file, part in zip(files, parts, strict=True):
        if part.shape[1:] != parts[0].shape[1:] or part.kind != parts[0].kind:
            raise CalmrlError(
                f"'{file}': {name!r} is {list(part.shape)} ({part.kind}), and {list(parts[0].shape)} ({parts[0].kind}) in '{files[0].name}'",
                hint="parts of one table have rows of one kind and length; move what is no part out of the folder",
            )

    def load() -> np.ndarray:
        loaded = [part.load() for part in parts]
        if parts[0].kind == "numbers" and len(parts[0].shape) == 2:
            return StackedRows(loaded)  # type: ignore[return-value]
        return np.concatenate(loaded)

    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Field(name, shape, parts[0].kind, load, all(part.printed for part in parts))


def _with_rows(files: Sequence[Path]) -> Sequence[Path]:
    """The files without empty texts, which Spark writes for parts that have no rows."""
    text = is_text_table(files[0])
    return [file for file in files if not text or file.stat().st_size] or files


def _check_whole(folder: Path, files: Sequence[Path]) -> None:
    found = [match for file in files if (match := _OF.search(file.name))]
    totals = {int(match[2]) for match in found}
    if len(found) != len(files) or len(totals) != 1:
        return
    numbers = {int(match[1]) for match in found}
    total = totals.pop()
    first = 0 if 0 in numbers else 1
    if missing := sorted(set(range(first, first + total)) - numbers):
        raise CalmrlError(
            f"'{folder}' has {len(numbers)} of {total} parts; number {missing[0]} is missing", hint="fetch the missing parts"
        )


def gaps(files: Sequence[Path]) -> list[str]:
    """A note on numbers that the names of the parts leave out."""
    numbers = [int(found[0]) for file in files if (found := _NUMBER.search(file.name))]
    if len(numbers) != len(files) or len(set(numbers)) != len(numbers) or max(numbers) - min(numbers) > 2 * len(numbers):
        return []
    missing = sorted(set(range(min(numbers), max(numbers) + 1)) - set(numbers))
    return [f"there is no part {', '.join(map(str, missing[:4]))} between its {len(files)} parts"] if missing else []
