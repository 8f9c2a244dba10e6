"""What a file of features holds before anybody has said which of it are the features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.reading.data_frames import data_frame, looks_like_numbers_of_a_frame

Kind = Literal["numbers", "flags", "strings", "other"]


@dataclass(frozen=True)
class Field:
    """One array of a file, or one column of a table: what it looks like, and how to load it.

    `shape` [R], [R, d] or whatever else the file holds. `load` returns an array of this shape: numbers, bool, or str.
    `printed`: the numbers came as text or as Python numbers, so their type says nothing of the type that they had.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    load: Callable[[], np.ndarray]
    printed: bool = False

    @classmethod
    def of(cls, name: str, array: np.ndarray, printed: bool = False) -> Field:
        """The field of an array in memory."""
        return cls(name, array.shape, kind_of(array.dtype), lambda: array, printed)


@dataclass(frozen=True)
class Content:
    """The fields of a file by name, in its order.

    `table`: all fields are columns of the same rows. `ordered`: False where the format sorts names by letters, so that the order
    means nothing (item10 before item2). `index`: the column that was the index of a data frame. `nested`: a '/' in the name of an item's array divides a group from its member, and is no part of the id.
    """

    path: Path
    fields: Mapping[str, Field]
    table: bool = False
    ordered: bool = True
    nested: bool = True
    index: str | None = None
    notes: Sequence[str] = field(default_factory=tuple)


def kind_of(dtype: np.dtype[Any]) -> Kind:
    """What an array of this dtype can be."""
    if dtype.kind in "fiu" and dtype.itemsize <= 8:
        return "numbers"
    return "flags" if dtype.kind == "b" else "strings" if dtype.kind in "US" else "other"


def content_of(path: Path, loaded: Any, ordered: bool = True) -> Content:
    """The content of a Python object of arrays, numbers, strings and containers: a file of one object (.npy, .pkl, .pt, .json).

    One array; a dict of arrays, lists and dicts; or a list of dicts, whose keys are columns then.
    """
    if isinstance(loaded, np.ndarray) and loaded.dtype == object and loaded.ndim == 0:
        loaded = loaded.item()
    if isinstance(loaded, np.ndarray) and loaded.dtype == object:
        loaded = loaded.tolist()
    if isinstance(loaded, (list, tuple)) and loaded and all(isinstance(entry, Mapping) for entry in loaded):
        return _of_records(path, loaded)
    if isinstance(loaded, (list, tuple)) and len(loaded) == 2 and _is_strings(loaded[0]) and not _is_strings(loaded[1]):
        loaded = {"ids": loaded[0], "features": loaded[1]}
    elif isinstance(loaded, (list, tuple)) and len(loaded) == 2 and _is_strings(loaded[1]) and not _is_strings(loaded[0]):
        loaded = {"ids": loaded[1], "features": loaded[0]}
    if isinstance(loaded, (list, tuple)) and loaded and all(_is_pair(entry) for entry in loaded):
        # Pairs (id, array); an id that comes again would be lost in a dict.
        loaded = {"ids": [spelled(name) for name, _ in loaded], "features": [value for _, value in loaded]}
    if isinstance(loaded, Mapping) and (frame := data_frame(loaded)) is not None:
        return replace(_of_records(path, frame.rows), index=frame.index)
    if isinstance(loaded, Mapping) and looks_like_numbers_of_a_frame(loaded):
        raise CalmrlError(
            f"'{path}' holds numbers by two names, and does not say which of them are items: {_names(loaded)} or {_names(next(iter(loaded.values())))}",
            hint="write {id: [numbers]}, or a data frame with to_json(path, orient='split')",
        )
    if isinstance(loaded, (list, tuple)) and (several := _several(loaded)) is not None:
        loaded = several
    if not isinstance(loaded, Mapping):
        loaded = {"features": loaded}
    fields: dict[str, Field] = {}
    _collect(path, loaded, "", fields, 0)
    return Content(path, fields, ordered=ordered, nested=any(isinstance(value, Mapping) for value in loaded.values()))


def _collect(path: Path, group: Mapping[Any, Any], prefix: str, fields: dict[str, Field], depth: int) -> None:
    if depth > 4:
        raise CalmrlError(f"'{path}' nests dicts more than four deep", hint="save one array per item: {id: [d]}")
    for key, value in group.items():
        name = prefix + spelled(key)
        if isinstance(value, Mapping):
            _collect(path, value, f"{name}/", fields, depth + 1)
            continue
        if _are_rows(value) and not any(str(column) in group for column in value[0]):
            # Rows about the rows of an array beside them: their columns.
            for column, field_of in _of_records(path, value).fields.items():
                fields[prefix + column] = replace(field_of, name=prefix + column)
            continue
        if name in fields:
            raise CalmrlError(f"'{path}' has two entries that are spelled {name!r}", hint="keys must differ as text")
        fields[name] = Field.of(name, as_array(value), isinstance(value, (list, tuple)) and not _holds_arrays(value))


def _several(loaded: Sequence[Any]) -> dict[str, Any] | None:
    """The arrays of a short tuple or list, by their places, where one is a matrix and each has its number of rows: (features, labels, names)."""
    if not 2 <= len(loaded) <= 6 or not all(hasattr(part, "__len__") and not isinstance(part, (str, bytes)) for part in loaded):
        return None
    shapes = [tuple(getattr(part, "shape", (len(part),))) for part in loaded]
    if len({shape[:1] for shape in shapes}) > 1 or sum(len(shape) > 1 for shape in shapes) != 1:
        return None
    return {str(place): part for place, part in enumerate(loaded)}


def _are_rows(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(row, Mapping) and row for row in value)


def _names(group: Mapping[Any, Any]) -> str:
    return ", ".join(repr(spelled(name)) for name in list(group)[:2]) + (", ..." if len(group) > 2 else "")


def flattened(record: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """The cells of a row whose values may be objects: {"data": {"embedding": [...]}} has the cell `data.embedding`.

    >>> flattened({"id": "a", "data": [{"embedding": [1.0], "index": 0}]})
    {'id': 'a', 'data.embedding': [1.0], 'data.index': 0}
    """
    cells: dict[str, Any] = {}
    for key, value in record.items():
        name = prefix + spelled(key)
        inner = value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping) else value
        cells |= flattened(inner, f"{name}.") if isinstance(inner, Mapping) else {name: value}
    return cells


def _of_records(path: Path, records: Sequence[Mapping[Any, Any]]) -> Content:
    records = [flattened(record) for record in records]
    names = list(dict.fromkeys(key for record in records for key in record))
    columns = {name: column_of(path, name, [record.get(name) for record in records]) for name in names}
    return Content(
        path, {name: Field.of(name, column, printed=True) for name, column in columns.items()}, table=True, nested=False
    )


def column_of(path: Path, name: str, values: Sequence[Any]) -> np.ndarray:
    """The column `name` of a table from its cells, [R] or [R, d]: numbers, str or bool.

    Lists of numbers of one length become [R, d], None among them a row of NaN. Cells of several kinds become str.
    Raises CalmrlError if lists have different lengths.
    """
    values = [_unwrapped(value) for value in values]
    present = [value for value in values if value is not None and not (isinstance(value, float) and value != value)]
    if present and all(isinstance(value, (list, tuple, np.ndarray)) for value in present):
        arrays = [as_array(value) for value in present]
        shapes = {array.shape for array in arrays}
        if any(array.dtype.kind not in "fiu" for array in arrays):
            return np.array([str(value) for value in values], dtype=object)
        if len(shapes) != 1:
            told = ", ".join(str(list(shape)) for shape in sorted(shapes)[:4])
            raise CalmrlError(
                f"'{path}': the lists in '{name}' have lengths {told}; expected one length",
                hint="pool or pad the features to one length before they are saved",
            )
        stacked = np.stack(arrays)
        if len(present) == len(values):
            return stacked
        whole = np.full((len(values), *stacked.shape[1:]), np.nan, dtype=np.float64)
        whole[[value is not None and not isinstance(value, float) for value in values]] = stacked
        return whole
    if present and all(isinstance(value, (bool, np.bool_)) for value in present) and len(present) == len(values):
        return np.array(values, dtype=bool)
    if present and all(isinstance(value, (int, float, np.number)) and not isinstance(value, bool) for value in present):
        if len(present) == len(values) and all(isinstance(value, (int, np.integer)) for value in values):
            return np.array(values, dtype=np.int64)
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return np.array(["" if value is None or value != value else spelled(value) for value in values], dtype=np.str_)


def _unwrapped(value: Any) -> Any:
    """A tensor as an array, and an array or tensor of one number without axes as this number."""
    array = as_array(value) if hasattr(value, "detach") else value
    return array.item() if isinstance(array, (np.ndarray, np.generic)) and array.ndim == 0 else array


def as_array(value: Any) -> np.ndarray:
    """A tensor, a list of numbers or of strings, or a number as an array; bfloat16 and float8, which numpy lacks, exactly as float32."""
    if hasattr(value, "detach") and hasattr(value, "numpy"):
        return _of_tensor(value.detach())
    if isinstance(value, np.ndarray):
        return as_array(value.tolist()) if value.dtype == object else value
    if isinstance(value, (list, tuple)):
        if _is_strings(value):
            return np.array(value, dtype=np.str_)
        inner = [as_array(entry) for entry in value] if any(hasattr(entry, "__len__") for entry in value) else list(value)
        try:
            return np.array(inner)
        except ValueError:
            return np.array(str(value)[:80], dtype=object)
    return np.asarray(value)


def _of_tensor(tensor: Any) -> np.ndarray:
    """A tensor as an array of the same numbers: sparse ones with their zeros, quantised ones as the numbers that they stand for."""
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if str(tensor.layout) != "torch.strided":
        tensor = tensor.to_dense()
    # NumPy has neither bfloat16 nor the kinds of float8; float32 holds them exactly.
    narrow = str(tensor.dtype).startswith(("torch.bfloat16", "torch.float8"))
    return np.asarray((tensor.float() if narrow else tensor).numpy())


def _is_pair(entry: Any) -> bool:
    return (
        isinstance(entry, (list, tuple))
        and len(entry) == 2
        and isinstance(entry[0], str)
        and not isinstance(entry[1], (str, bytes))
    )


def _holds_arrays(value: Sequence[Any]) -> bool:
    return any(isinstance(entry, np.ndarray) or hasattr(entry, "detach") for entry in value)


def _is_strings(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(entry, (str, bytes)) for entry in value)


# Places behind the point that pandas' to_json writes, by default and at most.
_PLACES = (10, 15)


def as_float32(values: Shaped[np.ndarray, ...]) -> Shaped[np.ndarray, ...]:
    """Numbers that came as text or Python floats: float32 if each is a float32 (as such, or as it is printed), else as they are.

    So features that were float32 come back as the same float32, whichever way they were written.

    >>> as_float32(np.array([0.1257302165, 0.5])).dtype, as_float32(np.array([0.1257302161, 0.5])).dtype
    (dtype('float32'), dtype('float64'))
    """
    if values.dtype != np.float64:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        short = values.astype(np.float32)
        left = ~((short.astype(np.float64) == values) | np.isnan(values))
    rest, exact = short[left], values[left]
    if not np.isfinite(rest).all():
        return values
    shortest = np.array([float(str(one)) for one in rest])
    if (shortest == exact).all() or any(_is_rounded(rest, exact, places) for places in _PLACES):
        return short
    return values


def _is_rounded(short: Shaped[np.ndarray, " n"], values: Shaped[np.ndarray, " n"], places: int) -> bool:
    """Whether values are those of `short` with so many places behind the point."""
    rounded = np.round(values, places) == values
    near = np.abs(short.astype(np.float64) - values) <= 0.5 * 10.0**-places + np.spacing(np.abs(values))
    return bool((rounded & near).all())


def spelled(value: Any) -> str:
    """A key, or the cell of an id, as text: numbers as they print, bytes as UTF-8 (UnicodeDecodeError if they are not)."""
    if isinstance(value, (bytes, np.bytes_)):
        return value.decode("utf-8")
    return str(value.item()) if isinstance(value, np.generic) else str(value)
