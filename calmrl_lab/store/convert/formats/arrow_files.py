"""Columnar tables: Parquet, Arrow and Feather files, and the folders that Hugging Face `datasets` saves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.formats._folders import files_in
from calmrl_lab.store.convert.reading.content import Content, Field, Kind, kind_of
from calmrl_lab.store.convert.reading.reading_errors import reading_errors


@formats.register("parquet")
class Parquet:
    """Parquet (.parquet), Arrow or Feather (.arrow, .feather): a column of lists, or columns x0 to xN"""

    endings: ClassVar[tuple[str, ...]] = (".parquet", ".pq", ".arrow", ".feather")

    @staticmethod
    def is_folder(path: Path) -> bool:
        return next(files_in(path, ".parquet"), None) is not None

    @staticmethod
    def read(path: Path) -> Content:
        import pyarrow as pa

        parts = list(files_in(path, ".parquet")) if path.is_dir() else [path]
        tables = [_table(part) for part in parts]
        try:
            table = pa.concat_tables(tables, promote_options="default")
        except pa.ArrowInvalid as error:
            raise CalmrlError(
                f"the Parquet files of '{path}' have different columns: {str(error)[:100]}",
                hint="import them one after the other, and merge the stores",
            ) from None
        return table_content(path, table)


@formats.register("datasets-folder")
class DatasetsFolder:
    """Folder that Hugging Face `datasets` wrote (save_to_disk)"""

    endings: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def is_folder(path: Path) -> bool:
        return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()

    @staticmethod
    def read(path: Path) -> Content:
        import pyarrow as pa

        if not (path / "dataset_dict.json").is_file():
            return table_content(path, _saved_dataset(path))
        names = json.loads((path / "dataset_dict.json").read_text("utf-8"))["splits"]
        tables = []
        for name in names:
            if Path(name).name != name:
                raise CalmrlError(
                    f"'{path / 'dataset_dict.json'}' names a split outside its folder: {name!r}",
                    hint="save the data set again with save_to_disk",
                )
            table = _saved_dataset(path / name)
            if "split" not in table.column_names:
                table = table.append_column("split", pa.array([name] * len(table)))
            tables.append(table)
        return table_content(path, pa.concat_tables(tables, promote_options="default"))


def _saved_dataset(folder: Path) -> Any:
    """The table of one saved dataset, in the order of its own selection of rows if it has one."""
    import pyarrow as pa

    with reading_errors(folder):
        state = json.loads((folder / "state.json").read_text("utf-8"))
        parts = [entry["filename"] for entry in state["_data_files"]]
        chosen = [entry["filename"] for entry in state.get("_indices_data_files") or []]
        if any(Path(name).name != name for name in (*parts, *chosen)):
            raise CalmrlError(
                f"'{folder / 'state.json'}' names files outside its folder", hint="save the data set again with save_to_disk"
            )
        table = pa.concat_tables([_table(folder / name) for name in parts])
        if chosen:
            table = table.take(pa.concat_tables([_table(folder / name) for name in chosen]).column(0))
    return table


def _table(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading_errors(path):
        if path.suffix.lower() in (".parquet", ".pq"):
            return pq.read_table(path)
        with pa.memory_map(str(path)) as source:
            try:
                return pa.ipc.open_file(source).read_all()
            except pa.ArrowInvalid:
                source.seek(0)
                return pa.ipc.open_stream(source).read_all()


def table_content(path: Path, table: Any) -> Content:
    """The content of a pyarrow table: its columns, of which list columns are [rows, d]."""
    names = table.column_names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CalmrlError(f"'{path}' names a column twice: {twice}", hint="rename one of them")
    # Structs become their parts (an image is {bytes, path}); what no reader takes is left out by its kind.
    table = table.flatten() if any(_is_struct(table.schema.field(name).type) for name in names) else table
    fields = {name: _column(path, name, table[name]) for name in table.column_names}
    return Content(path, fields, table=True, nested=False, index=next(_frame_index(table.schema, fields), None))


def _frame_index(schema: Any, fields: dict[str, Field]) -> Iterator[str]:
    """The column that was the index of a pandas data frame, if it was one of texts."""
    try:
        described = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    except ValueError:
        return
    for name in described.get("index_columns", ()) if isinstance(described, dict) else ():
        if isinstance(name, str) and name in fields and fields[name].kind == "strings":
            yield name


def _column(path: Path, name: str, column: Any) -> Field:
    import pyarrow as pa

    kind = column.type
    if isinstance(column, pa.ChunkedArray) and hasattr(kind, "storage_type"):
        column, kind = column.cast(kind.storage_type), kind.storage_type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if _is_list(kind):
        rows = _lists(path, name, column.combine_chunks())
        return (
            Field.of(name, rows)
            if rows is not None
            else Field(name, (len(column),), "other", lambda: np.array(column.to_pylist(), dtype=object))
        )
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or "string_view" in str(kind):
        return Field(
            name,
            (len(column),),
            "strings",
            lambda: np.array(["" if v is None else v for v in column.to_pylist()], dtype=np.str_),
        )
    if (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) and (texts := _utf8(column)) is not None:
        return Field.of(name, texts)
    if pa.types.is_boolean(kind) and not column.null_count:
        return Field(name, (len(column),), "flags", lambda: np.array(column.to_pylist(), dtype=bool))
    what: Kind = "numbers" if pa.types.is_floating(kind) or pa.types.is_integer(kind) else "other"
    if what == "numbers":
        what = kind_of(np.dtype(kind.to_pandas_dtype()))
        return Field(name, (len(column),), what, lambda: column.to_numpy(zero_copy_only=False))
    return Field(name, (len(column),), what, lambda: np.array(column.to_pylist(), dtype=object))


def _utf8(column: Any) -> np.ndarray | None:
    """A column of bytes as str, if all of them are printable UTF-8; pictures and sounds are not."""
    texts = []
    for cell in column:
        data = cell.as_py()
        try:
            texts.append("" if data is None else data.decode("utf-8"))
        except UnicodeDecodeError:
            return None
        if not texts[-1].isprintable():
            return None
    return np.array(texts, dtype=np.str_)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind))


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind))


def _lists(path: Path, name: str, column: Any) -> np.ndarray | None:
    """Lists of numbers of equal length -> [R, d] (lists of lists [R, T, d]); a null list becomes NaN, which is a missing row. None for other lists."""
    import pyarrow as pa
    import pyarrow.compute as pc

    present, shape = column, []
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    present = column.filter(column.is_valid())
    values: Any = present
    while _is_list(values.type):
        lengths = pc.unique(pc.list_value_length(values).drop_null()).to_pylist()
        if len(lengths) != 1 or values.null_count:
            inner = values.type
            while _is_list(inner):
                inner = inner.value_type
            if not (pa.types.is_floating(inner) or pa.types.is_integer(inner)):
                return None
            raise CalmrlError(
                f"'{path}': the lists of features in '{name}' have lengths {sorted(lengths)[:4]}; expected one length",
                hint="pool or pad the features to one length before they are saved",
            )
        shape.append(int(lengths[0]))
        values = values.flatten()
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        return None
    rows = values.to_numpy(zero_copy_only=False).reshape(-1, *shape)
    if valid.all():
        return np.asarray(rows)
    padded = np.full((len(column), *shape), np.nan, dtype=rows.dtype if rows.dtype.kind == "f" else np.float64)
    padded[valid] = rows
    return padded
