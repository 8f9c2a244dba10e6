"""Anybody's collection: a table of items (CSV, JSON or Parquet) over a folder of media."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime import console
from calmrl_lab.store.convert.item_tables import id_column
from calmrl_lab.store.convert.media_endings import IMAGE_ENDINGS, SOUND_ENDINGS, VIDEO_ENDINGS
from calmrl_lab.store.convert.reading.gzip_files import plain_stem
from calmrl_lab.store.convert.reading.row_names import NO_ID, is_id
from calmrl_lab.store.convert.records import Record, Records, is_missing, is_missing_word, read_records
from calmrl_lab.store.splits import assign_splits, first_divided_group, split_named
from feature_extractors.datasets import datasets
from feature_extractors.datasets._vast_annotations import refuse_unknown
from feature_extractors.protocols import File, Item, Manifest, Medium, Text, Vector

_ENDINGS = (*VIDEO_ENDINGS, *SOUND_ENDINGS, *IMAGE_ENDINGS)
# Entries of a column that are looked at to tell paths from texts.
_LOOKED_AT = 100
_EXAMPLE = """a table like this:
    id,split,group,label,vision,audio,caption
    clip1,train,film1,dog,clips/1.mp4,clips/1.mp4,A dog runs.
    clip2,test,film2,cat,clips/2.mp4,,A cat sleeps."""


@dataclass
class _Row:
    """A row of the table: everything but the modalities as text, modalities as lists of texts or vectors. `where`: its line."""

    where: str
    known: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)
    media: dict[str, list[Any]] = field(default_factory=dict)


@datasets.register("folder")
class Folder:
    """Your own collection: --manifest TABLE (id, split, group, label, one column per modality) over --media DIR

    The table is CSV (`,`, `;` or tabs), a JSON list, JSON lines or Parquet. Columns: `id` (or the only one called like one, or
    `--set id_column=NAME`; rows of one id are one item, a caption each); optionally `split` (train, validation, test; without it items are split 60/15/25 by
    group), `group` (items that must not be split apart), `label` or `label_NAME`; every other column is a modality: a path in --media
    or a text, empty where the item lacks it (None, NaN and words for them are empty too). In JSON an entry may be a list: several texts or files (captions), or the numbers
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
        id_column: str | None = None,
        follow_links: Sequence[str | Path] | str | Path = (),
        **unknown: Any,
    ) -> None:
        refuse_unknown("folder", unknown, ("manifest", "name", "licence", "attribution", "id_column", "follow_links"))
        if manifest is None:
            raise CalmrlError("dataset 'folder' needs a table of its items", hint=f"--manifest FILE, {_EXAMPLE}")
        if media is not None and not Path(media).is_dir():
            raise CalmrlError(
                f"the media folder '{media}' does not exist",
                hint="--media DIR names the folder that the paths of the manifest start from",
            )
        self.media = Path(media) if media is not None else None
        self.table = Path(str(manifest))
        self.name = str(name) if name is not None else plain_stem(self.table)
        self.licence, self.attribution = str(licence), str(attribution)
        self.id_column = str(id_column) if id_column is not None else None

    def manifest(self) -> Manifest:
        """Items in the order of the table. Raises CalmrlError naming the line of whatever cannot be used."""
        records = self._records()
        # What the modalities are called may hang on which columns of files there are, so the id is chosen first.
        rows = self._joined([self._row(record, self._id_of(records)) for record in records.rows])
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

    def _records(self) -> Records:
        if not self.table.is_file():
            raise CalmrlError(f"there is no table '{self.table}'", hint=f"--manifest FILE, {_EXAMPLE}")
        records = read_records(self.table)
        blank = next((name for name in records.names if not name.strip()), None)
        if blank is not None and records.names.index(blank):
            raise CalmrlError(f"'{self.table}': a column has no name", hint=f"expected {_EXAMPLE}")
        words = sum(is_missing_word(value) for row in records.rows for name, value in row.values.items() if name != "id")
        if words:
            console.note(f"{self.table.name}: {words} cells are words like NaN or None and count as missing")
        return records

    def _id_of(self, records: Records) -> str:
        """The column of ids: the one that was named, `id`, one called like an id, or, failing that, the first column of files."""
        if self.id_column is None and "id" not in records.names:
            files = [
                name for name in records.names if all(self._is_path(row.values.get(name)) for row in records.rows[:_LOOKED_AT])
            ]
            named = [name for name in records.names if is_id(name)]
            if files and not named and records.rows:
                return files[0]
        try:
            return id_column(records, self.id_column)
        except CalmrlError as error:
            told = f" (columns: {', '.join(records.names)})" if records.names else " (columns: none)"
            hint = f"--set id_column=NAME, or {_EXAMPLE}" if records.names else f"expected {_EXAMPLE}"
            raise CalmrlError(f"{error.message}{'' if self.id_column else told}", hint=hint) from None

    def _is_path(self, value: Any) -> bool:
        return isinstance(value, str) and value.strip().lower().endswith(_ENDINGS)

    def _row(self, record: Record, id_name: str) -> _Row:
        row = _Row(record.where, {})
        for column, value in record.values.items():
            if column == id_name:
                if isinstance(value, list | dict):
                    raise CalmrlError(
                        f"{self._at(record)}: '{column}' is a {type(value).__name__}, expected a single value",
                        hint=f"expected {_EXAMPLE}",
                    )
                row.known["id"] = "" if value is None or value != value else str(value)
                if self._is_path(value) and id_name not in ("id", self.id_column):
                    row.media[column] = _entries(value, column, self._at(record))
            elif column == "" or column.startswith(("__index_", "Unnamed:")):
                continue
            elif column in ("split", "group") or column.split("_")[0] == "label":
                if isinstance(value, list | dict):
                    raise CalmrlError(
                        f"{self._at(record)}: '{column}' is a {type(value).__name__}, expected a single value",
                        hint=f"expected {_EXAMPLE}",
                    )
                text = "" if is_missing(value) else str(value)
                if column.startswith("label"):
                    row.labels[column.removeprefix("label_")] = text
                else:
                    row.known[column] = text.strip() if column == "split" else text
            else:
                row.media[column] = _entries(value, column, self._at(record))
        if row.known.get("id", "").strip() in NO_ID:
            raise CalmrlError(f"{self._at(record)} has no id", hint="give every row an id, or leave it out")
        return row

    def _at(self, record: Record) -> str:
        return f"'{self.table}', {record.where}"

    def _joined(self, rows: list[_Row]) -> list[_Row]:
        """Rows of one id in one split as one item, with all its different media; those of different splits told apart as split/id."""
        homes: dict[str, dict[str, _Row]] = {}
        for row in rows:
            splits = homes.setdefault(row.known["id"], {})
            first = splits.setdefault(row.known.get("split", "").lower(), row)
            if first is not row:
                self._join(first, row)
        shared = [name for name, splits in homes.items() if len(splits) > 1]
        for name in shared:
            for split, row in homes[name].items():
                row.known["id"] = f"{split_named(split) or split}/{name}"
        kept = [row for splits in homes.values() for row in splits.values()]
        if len(kept) < len(rows):
            console.note(f"{self.table.name}: {len(rows)} rows are {len(kept)} items; rows of one id are one item")
        if shared:
            console.note(
                f"{self.table.name}: {len(shared)} ids stand in several splits, the first is {shared[0]!r}; these are items of their own, split/id"
            )
        return kept

    def _join(self, first: _Row, row: _Row) -> None:
        for what, one, other in (("group", first.known, row.known), *((name, first.labels, row.labels) for name in row.labels)):
            if one.get(what, "") != other.get(what, ""):
                raise CalmrlError(
                    f"'{self.table}', {row.where}: the item {row.known['id']!r} has the {what} {other.get(what, '')!r} here and {one.get(what, '')!r} in {first.where}",
                    hint="rows of one id are one item; give different items different ids",
                )
        for column, entries in row.media.items():
            there = first.media.setdefault(column, [])
            there += [entry for entry in entries if not any(_same(entry, other) for other in there)]

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
        return all(map(self._is_path, looked_at)) or any(map(self._is_there, looked_at))

    def _is_there(self, entry: str) -> bool:
        try:
            # Not a folder: classes of images lie in folders, and their names are also captions.
            return self.media is not None and len(entry) < 4096 and (self.media / self._slashes(entry)).is_file()
        except (OSError, ValueError):
            return False

    def _slashes(self, entry: str) -> str:
        """A path as this system writes it: Windows has backslashes, unless there is a file of that very name."""
        if "\\" not in entry or (self.media is not None and (self.media / entry).is_file()):
            return entry
        return entry.replace("\\", "/")

    def _medium(self, row: _Row, entry: Any, is_file: bool) -> Medium:
        if not isinstance(entry, str):
            return Vector(entry)
        if not is_file:
            return Text(entry)
        if self.media is None:
            raise CalmrlError(f"'{self.table}' names files ({entry!r}), but not where they are", hint="--media DIR")
        if "\0" in entry:
            raise CalmrlError(
                f"'{self.table}', {row.where}: {entry!r} is no path", hint="paths in the table are relative to --media DIR"
            )
        entry = self._slashes(entry if self._is_there(entry) else entry.strip())
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", entry):
            raise CalmrlError(
                f"'{self.table}', {row.where}: {entry!r} is an address, and nothing is downloaded",
                hint="fetch the files first; paths in the table are relative to --media DIR",
            )
        if re.match(r"[A-Za-z]:/", entry):
            raise CalmrlError(
                f"'{self.table}', {row.where}: {entry!r} is a place on a Windows machine",
                hint="paths in the table are relative to --media DIR",
            )
        path = self.media / entry
        if path.is_absolute() and path.is_relative_to(self.media.absolute()):
            path = self.media / path.relative_to(self.media.absolute())
        # Told apart by words alone, without looking at the disk; links are followed when the file is read.
        parts = path.relative_to(self.media).parts if path.is_relative_to(self.media) else ("..",)
        if ".." in parts:
            raise CalmrlError(
                f"'{self.table}', {row.where}: {entry!r} leads outside the media folder '{self.media}'",
                hint="paths in the table are relative to --media DIR",
            )
        return File(path)

    def _splits(self, rows: Sequence[_Row], groups: Sequence[str]) -> list[str]:
        given = [row.known.get("split", "") for row in rows]
        if not any(given):
            return [str(split) for split in assign_splits(np.array(groups))]
        for row, split in zip(rows, given, strict=True):
            if split_named(split) is None:
                raise CalmrlError(
                    f"'{self.table}', {row.where}: the split is {split!r}", hint="expected train, validation or test"
                )
        splits = [split_named(split) or "" for split in given]
        divided = first_divided_group(np.array(groups), np.array(splits))
        if divided is not None:
            raise CalmrlError(
                f"'{self.table}', {rows[divided.item].where}: the group {divided.group!r} is in {divided.other} here and in {divided.one} before",
                hint="a group is what must not be split apart; change the splits, or leave out the column 'group'",
            )
        return splits


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    return bool(one == other)


def _entries(value: Any, column: str, where: str) -> list[Any]:
    """The media of one entry: texts, or one vector. White space is no medium."""
    if isinstance(value, list) and value and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        try:
            with np.errstate(over="ignore"):
                vector = np.array(value, dtype=np.float32)
        except OverflowError:
            vector = np.full(1, np.inf)
        if not np.isfinite(vector).all():
            raise CalmrlError(
                f"{where}: '{column}' holds numbers that are NaN or too large for float32", hint="leave out what is missing"
            )
        return [vector]
    if isinstance(value, str) and re.match(r"\[\s*['\"\d.+-]", value) and (listed := _printed_list(value)):
        return _entries(listed, column, where)
    entries = [entry for entry in (value if isinstance(value, list) else [value]) if not is_missing(entry)]
    if not all(isinstance(entry, str) for entry in entries):
        raise CalmrlError(
            f"{where}: '{column}' holds {json.dumps(value, default=str)[:60]}; expected a text, a path, a list of them, or a list of numbers",
            hint="columns of a table are id, split, group, label, label_NAME, and one for every modality",
        )
    return entries


def _printed_list(text: str) -> list[Any] | None:
    """The texts, or the numbers, of a list that a data frame printed into a cell; None for any other text.

    >>> _printed_list("['a dog', 'it runs']"), _printed_list("[music]")
    (['a dog', 'it runs'], None)
    """
    try:
        listed = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    kinds: tuple[Any, ...] = (str, (int, float))
    whole = isinstance(listed, list) and any(all(isinstance(entry, kind) for entry in listed) for kind in kinds)
    return listed if whole else None
