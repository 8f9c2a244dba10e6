"""Anybody's collection: a table of items (CSV or JSONL) over a folder of media."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.splits import assign_splits, split_apart
from feature_extractors.datasets import datasets
from feature_extractors.datasets._vast_annotations import refuse_unknown
from feature_extractors.media.file_names import IMAGE_ENDINGS, SOUND_ENDINGS, VIDEO_ENDINGS
from feature_extractors.protocols import File, Item, Manifest, Medium, Text, Vector

_SPLITS = {name: name for name in ("train", "validation", "test")} | {
    "training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test",
}  # fmt: skip
_ENDINGS = (*VIDEO_ENDINGS, *SOUND_ENDINGS, *IMAGE_ENDINGS)
# Entries of a column that are looked at to tell paths from texts.
_LOOKED_AT = 100
_EXAMPLE = """a table like this:
    id,split,group,label,vision,audio,caption
    clip1,train,film1,dog,clips/1.mp4,clips/1.mp4,A dog runs.
    clip2,test,film2,cat,clips/2.mp4,,A cat sleeps."""


@dataclass
class _Row:
    """A line of the table: everything but the modalities as text, modalities as lists of texts or vectors."""

    number: int
    known: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)
    media: dict[str, list[Any]] = field(default_factory=dict)


@datasets.register("folder")
class Folder:
    """Your own collection: --manifest TABLE (id, split, group, label, one column a modality) over --media DIR

    The table is CSV, TSV or JSONL. Columns: `id`; optionally `split` (train, validation, test; without it items are split 60/15/25 by
    group), `group` (items that must not be split apart), `label` or `label_NAME`; every other column is a modality: a path in --media
    or a text, empty where the item lacks it. In JSONL an entry may be a list: several texts or files (captions), or the numbers
    of a vector. A column holds paths if one of its first entries is a file in --media or all of them end like media files; a heading
    `caption:text` or `vision:file` says so (folders of frames need it).
    """

    presets: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    def __init__(
        self,
        media: Path | None = None,
        manifest: str | Path | None = None,
        name: str | None = None,
        licence: str = "the licence of the media",
        attribution: str = "",
        **unknown: Any,
    ) -> None:
        refuse_unknown("folder", unknown, ("manifest", "name", "licence", "attribution"))
        if manifest is None:
            raise CalmrlError("dataset 'folder' needs a table of its items", hint=f"--manifest FILE, {_EXAMPLE}")
        if media is not None and not Path(media).is_dir():
            raise CalmrlError(f"the media folder '{media}' does not exist")
        self.media = Path(media) if media is not None else None
        self.table = Path(str(manifest))
        self.name = str(name) if name is not None else self.table.stem
        self.licence, self.attribution = str(licence), str(attribution)

    def manifest(self) -> Manifest:
        """Items in the order of the table. Raises CalmrlError naming the line of whatever cannot be used."""
        rows = list(self._rows())
        if not rows:
            raise CalmrlError(f"'{self.table}' has no items", hint=f"expected {_EXAMPLE}")
        columns = list(dict.fromkeys(column for row in rows for column in row.media))
        if not columns:
            raise CalmrlError(f"'{self.table}' has no column for a modality", hint=f"expected {_EXAMPLE}")
        kinds = {column: self._holds_files(column, rows) for column in columns}
        names = {column: column.partition(":")[0] for column in columns}
        if len(set(names.values())) < len(columns):
            raise CalmrlError(f"'{self.table}' has two columns for one modality: {', '.join(columns)}")
        groups = [row.known.get("group") or row.known["id"] for row in rows]
        splits = self._splits(rows, groups)
        items = tuple(
            Item(
                row.known["id"],
                split,
                {names[c]: tuple(self._medium(row, entry, kinds[c]) for entry in entries) for c, entries in row.media.items()},
                group,
                row.labels,
            )
            for row, split, group in zip(rows, splits, groups, strict=True)
        )
        return Manifest(self.name, self.licence, self.attribution, tuple(names.values()), items)

    def _rows(self) -> Iterator[_Row]:
        try:
            with open(self.table, encoding="utf-8-sig", newline="") as file:
                lines = (
                    _json_lines(file)
                    if self.table.suffix.lower() in (".jsonl", ".ndjson", ".json")
                    else _table(file, self.table)
                )
                for number, values in lines:
                    yield self._row(number, values)
        except FileNotFoundError:
            raise CalmrlError(f"there is no table '{self.table}'", hint=f"--manifest FILE, {_EXAMPLE}") from None
        except UnicodeDecodeError as error:
            raise CalmrlError(f"'{self.table}' is not UTF-8: {error.reason} at byte {error.start}") from None
        except (OSError, csv.Error, _Flaw) as error:
            raise CalmrlError(f"'{self.table}' cannot be read: {error}") from None

    def _row(self, number: int, values: Mapping[str, Any]) -> _Row:
        row = _Row(number, {})
        for column, value in values.items():
            if column in ("id", "split", "group") or column.split("_")[0] == "label":
                if isinstance(value, list | dict):
                    raise _Flaw(f"line {number}: '{column}' is a {type(value).__name__}, expected a single value")
                text = "" if value is None else str(value)
                if column.startswith("label"):
                    row.labels[column.removeprefix("label_")] = text
                else:
                    row.known[column] = text.strip() if column == "split" else text
            else:
                row.media[column] = _entries(value, column, number)
        if not row.known.get("id"):
            raise _Flaw(f"line {number} has no id")
        return row

    def _holds_files(self, column: str, rows: Sequence[_Row]) -> bool:
        declared = column.partition(":")[2]
        if declared in ("file", "text"):
            return declared == "file"
        if declared:
            raise CalmrlError(f"'{self.table}': the column '{column}' must end in ':file' or ':text', or in neither")
        texts = (entry for row in rows for entry in row.media.get(column, ()) if isinstance(entry, str))
        looked_at = [entry for entry, _ in zip(texts, range(_LOOKED_AT), strict=False)]
        if not looked_at:
            return False
        return all(entry.lower().endswith(_ENDINGS) for entry in looked_at) or any(map(self._is_there, looked_at))

    def _is_there(self, entry: str) -> bool:
        try:
            # Not a folder: classes of images lie in folders, and their names are also captions.
            return self.media is not None and len(entry) < 4096 and (self.media / entry).is_file()
        except (OSError, ValueError):
            return False

    def _medium(self, row: _Row, entry: Any, is_file: bool) -> Medium:
        if not isinstance(entry, str):
            return Vector(entry)
        if not is_file:
            return Text(entry)
        if self.media is None:
            raise CalmrlError(f"'{self.table}' names files ({entry!r}), but not where they are", hint="--media DIR")
        if "\0" in entry:
            raise CalmrlError(f"'{self.table}', line {row.number}: {entry!r} is no path")
        path = self.media / entry
        # Told apart by words alone, without looking at the disk; links are followed when the file is read.
        parts = path.relative_to(self.media).parts if path.is_relative_to(self.media) else ("..",)
        if ".." in parts:
            raise CalmrlError(
                f"'{self.table}', line {row.number}: {entry!r} leads outside the media folder '{self.media}'",
                hint="paths in the table are relative to --media DIR",
            )
        return File(path)

    def _splits(self, rows: Sequence[_Row], groups: Sequence[str]) -> list[str]:
        given = [row.known.get("split", "") for row in rows]
        if not any(given):
            return [str(split) for split in assign_splits(np.array(groups))]
        for row, split in zip(rows, given, strict=True):
            if split.lower() not in _SPLITS:
                raise CalmrlError(
                    f"'{self.table}', line {row.number}: the split is {split!r}", hint="expected train, validation or test"
                )
        splits = [_SPLITS[split.lower()] for split in given]
        torn = split_apart(np.array(groups), np.array(splits))
        if torn is not None:
            raise CalmrlError(
                f"'{self.table}', line {rows[torn.item].number}: the group {torn.group!r} is in {torn.other} here and in {torn.one} before",
                hint="a group is what must not be split apart; change the splits, or leave out the column 'group'",
            )
        return splits


class _Flaw(Exception):
    """What is wrong with a table, with the line."""


def _table(file: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    heading = [name.strip() for name in next(reader, [])]
    if "id" not in heading:
        raise _Flaw(f"no column 'id' (columns: {', '.join(heading) or 'none'}); expected {_EXAMPLE}")
    twice = [name for name in heading if not name or heading.count(name) > 1]
    if twice:
        raise _Flaw(f"the column {twice[0]!r} is there twice" if twice[0] else "a column has no name")
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(heading):
            raise _Flaw(f"line {reader.line_num} has {len(cells)} columns, the heading has {len(heading)}")
        yield reader.line_num, dict(zip(heading, cells, strict=True))


def _json_lines(file: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise _Flaw(f"line {number} is no JSON: {error}") from None
        if not isinstance(values, dict):
            raise _Flaw(f"line {number} is a {type(values).__name__}, expected an object with 'id'")
        yield number, values


def _entries(value: Any, column: str, number: int) -> list[Any]:
    """The media of one entry: texts, or one vector. White space is no medium."""
    if isinstance(value, list) and value and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        try:
            with np.errstate(over="ignore"):
                vector = np.array(value, dtype=np.float32)
        except OverflowError:
            vector = np.full(1, np.inf)
        if not np.isfinite(vector).all():
            raise _Flaw(f"line {number}: '{column}' holds numbers that are NaN or too large for float32")
        return [vector]
    entries = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(entry, str) for entry in entries):
        raise _Flaw(
            f"line {number}: '{column}' holds {json.dumps(value)[:60]}; expected a text, a path, a list of them, or a list of numbers"
        )
    return [entry for entry in entries if entry.strip()]
