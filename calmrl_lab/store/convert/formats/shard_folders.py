"""Shards of embeddings with their metadata: img_emb_0.npy, img_emb_1.npy, ... beside metadata_0.parquet, ..."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.formats._folders import files_in, folders_in
from calmrl_lab.store.convert.formats.arrow_files import Parquet
from calmrl_lab.store.convert.formats.text_tables import Csv, Json
from calmrl_lab.store.convert.reading.content import Content, Field, spelled
from calmrl_lab.store.convert.reading.mapped_arrays import npy_header
from calmrl_lab.store.convert.reading.reading_errors import reading_errors
from calmrl_lab.store.convert.reading.source import StackedRows
from calmrl_lab.store.convert.records import is_missing, read_records

_SHARD = re.compile(
    r"(.*(?:emb|embs|embedding|embeddings|feat|feats|features|part|shard|chunk|batch))[_-]?(\d+)", re.IGNORECASE
)
_NUMBERED = re.compile(r"(.*?)[_-]?(\d+)")


@formats.register("shards")
class Shards:
    """Folder of shards (img_emb_0.npy with metadata_0.parquet), as clip-retrieval writes them"""

    endings: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def is_folder(path: Path) -> bool:
        # Vectors called feat_0, feat_1, ... are items: shards have rows.
        return any(_has_rows(next(iter(shards.values()))) for shards in families(path).values())

    @staticmethod
    def read(path: Path) -> Content:
        found = families(path)
        fields: dict[str, Field] = {}
        lengths = {}
        for name, shards in found.items():
            _check_whole(path, name, shards)
            parts = {number: np.load(file, mmap_mode="r", allow_pickle=False) for number, file in shards.items()}
            shapes = {part.shape[1:] for part in parts.values()}
            if len(shapes) != 1 or any(part.ndim < 2 for part in parts.values()):
                raise CalmrlError(
                    f"the shards '{name}' in '{path}' have rows of different shapes: {sorted(shapes)[:4]}",
                    hint="all shards of a family have rows of one length",
                )
            rows = StackedRows(list(parts.values()))
            fields[name] = Field(name, rows.shape, "numbers", lambda rows=rows: rows)  # type: ignore[misc]
            lengths[name] = {number: len(part) for number, part in parts.items()}
        for name, values in {**_arrays_beside(path, lengths), **_metadata(path, lengths)}.items():
            fields.setdefault(name, values)
        return Content(path, fields, nested=False)


def _has_rows(file: Path) -> bool:
    with reading_errors(file), open(file, "rb") as opened:
        return len(npy_header(opened)[0]) > 1


def families(folder: Path) -> dict[str, dict[int, Path]]:
    """Family (img_emb) -> number -> file, of a folder, or of the folders img_emb/, text_emb/ in it."""
    found: dict[str, dict[int, Path]] = {}
    if not folder.is_dir():
        return found
    for place in (folder, *(place for place in folders_in(folder) if _SHARD.fullmatch(f"{place.name}0"))):
        for file in files_in(place, ".npy"):
            match = _SHARD.fullmatch(file.stem)
            if match:
                found.setdefault(match[1], {})[int(match[2])] = file
    return found


def _check_whole(folder: Path, name: str, shards: dict[int, Path]) -> None:
    numbers = sorted(shards)
    gap = next((n for n in range(numbers[0], numbers[-1]) if n not in shards), None)
    if gap is not None or numbers[0] > 1:
        raise CalmrlError(
            f"'{folder}' has the shards {name}_{numbers[0]} to {name}_{numbers[-1]}, but not {name}_{gap if gap is not None else 0}",
            hint="fetch the missing shard, or move the rest away",
        )


def _arrays_beside(folder: Path, lengths: dict[str, dict[int, int]]) -> dict[str, Field]:
    """Arrays [rows] in shards of their own, ids_0.npy, ids_1.npy, ..., of which each has as many entries as the shard has rows."""
    found: dict[str, dict[int, Path]] = {}
    for file in files_in(folder, ".npy"):
        if (match := _NUMBERED.fullmatch(file.stem)) and match[1] not in lengths:
            found.setdefault(match[1], {})[int(match[2])] = file
    fields = {}
    counts = next(iter(lengths.values()))
    for name, files in found.items():
        parts = {}
        for number, file in files.items():
            with reading_errors(file):
                parts[number] = np.load(file, allow_pickle=False)
        if {number: part.shape for number, part in parts.items()} != {number: (count,) for number, count in counts.items()}:
            raise CalmrlError(
                f"'{folder}' has the shards {name}_0 to {name}_{max(parts)}, whose lengths are not those of the features",
                hint="ids have one shard for each of the features, with one entry for every row; move what is no part out of the folder",
            )
        fields[name] = Field.of(name, np.concatenate([parts[number] for number in sorted(counts)]))
    return fields


def _table(file: Path) -> Any:
    """The metadata of one shard as a table of pyarrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading_errors(file):
        if file.suffix.lower() in Parquet.endings:
            return pq.read_table(file)
        records = read_records(file)
        columns = {
            name: [None if is_missing(cell) else spelled(cell) for cell in records.column(name)] for name in records.names
        }
        return pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()})


def _metadata(folder: Path, lengths: dict[str, dict[int, int]]) -> dict[str, Field]:
    """The columns of the metadata of all shards, in one piece."""
    import pyarrow as pa

    from calmrl_lab.store.convert.formats.arrow_files import table_content

    places = (folder, folder / "metadata", folder.parent / "metadata")
    files: dict[int, Path] = {}
    for place in places:
        for file in files_in(place, *Parquet.endings, *Csv.endings, *Json.endings) if place.is_dir() else ():
            match = re.fullmatch(r"metadata[_-]?(\d+)", file.name.partition(".")[0])
            if match:
                files.setdefault(int(match[1]), file)
    if not files:
        return {}
    counts = next(iter(lengths.values()))
    tables = []
    for number, count in counts.items():
        if number not in files:
            raise CalmrlError(
                f"'{folder}' has no metadata_{number}{next(iter(files.values())).suffix} for its shard {number}",
                hint="it names the rows of that shard",
            )
        table = _table(files[number])
        if len(table) != count:
            raise CalmrlError(
                f"'{files[number]}' has {len(table)} rows; shard {number} has {count}",
                hint="fetch both files of that shard again",
            )
        tables.append(table)
    return dict(table_content(folder, pa.concat_tables(tables, promote_options="default")).fields)
