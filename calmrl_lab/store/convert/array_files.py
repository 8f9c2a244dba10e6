"""One file of features, in any common format, to rows, their ids and which of them are missing. Nothing in a file is executed."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.mapped_arrays import hdf5_mapped, npy_header, npz_mapped

# Where a file of several arrays keeps features, ids and mask, tried in this order (after the modality's own name, for
# features).
_FEATURE_KEYS = ("features", "embeddings", "embedding")
_ID_KEYS = ("ids", "id")
_MASK_KEYS = ("mask", "observed")


@dataclass(frozen=True)
class Source:
    """What one file gives for one modality.

    rows: [R, d_m] numbers, in memory or mapped. ids: [R] str, or None if the file names none; an id that is repeated
    owns several rows. observed: [R] bool, or None if the file has no mask (then rows that are all NaN are missing).
    """

    path: Path
    rows: np.ndarray
    ids: np.ndarray | None = None
    observed: np.ndarray | None = None


def split_key(text: str) -> tuple[Path, str | None]:
    """'file.npz:key' -> (file.npz, key). A path that exists as it stands has no key."""
    if os.path.exists(text) or ":" not in text:
        return Path(text), None
    path, _, key = text.rpartition(":")
    return Path(path), key or None


def read_source(path: str | Path, modality: str, key: str | None = None) -> Source:
    """Read the features of `modality` from a .npy, .npz, .h5/.hdf5, .parquet, .safetensors or .pt/.pth file.

    key: the array (dataset, tensor, column) to take; default: the one called like the modality, or 'features',
    'embeddings', or the only two-dimensional one. Arrays called 'ids' and 'mask' beside it are used; a .pt may also be a
    dict from id to vector. Raises CalmrlError if the file is missing, damaged, of another kind, holds Python objects, or
    the choice is not clear.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise CalmrlError(
            f"'{path}': features are not read from '{path.suffix or path.name}' files",
            hint=f"known: {', '.join(sorted(_READERS))}",
        )
    with reading_errors(path):
        if not path.is_file():
            raise CalmrlError(f"the file '{path}' does not exist", hint="a key inside a file is given as FILE:KEY")
        source = reader(path, modality, key)
    rows = source.rows
    if rows.ndim != 2 or rows.shape[1] == 0 or rows.dtype.kind not in "fiu" or rows.dtype.itemsize > 8:
        raise CalmrlError(
            f"'{path}': the features of '{modality}' are {rows.dtype} {list(rows.shape)}; expected numbers [rows, d]"
        )
    for what, array in (("ids", source.ids), ("mask", source.observed)):
        if array is not None and array.shape != (len(rows),):
            raise CalmrlError(f"'{path}': {what} has shape {list(array.shape)}; the features have {len(rows)} rows")
    return source


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Turns whatever a library says about a damaged or foreign file into one sentence."""
    from pickle import UnpicklingError

    try:
        yield
    except CalmrlError:
        raise
    except UnpicklingError:
        raise CalmrlError(f"'{path}' holds Python objects or code besides tensors; it was not executed", hint=_SAFE) from None
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, TypeError, IndexError, zipfile.BadZipFile) as error:
        if any(word in str(error).lower() for word in ("pickle", "python objects")):
            raise CalmrlError(f"'{path}' holds Python objects, which could be code; it was not loaded", hint=_SAFE) from None
        said = str(error).strip().split("\n")[0][:120]
        raise CalmrlError(f"'{path}' cannot be read as {path.suffix.lstrip('.') or 'a table'}: {said}") from None


def _npy(path: Path, modality: str, key: str | None) -> Source:
    if key is not None:
        raise CalmrlError(f"'{path}' is a single array and has no '{key}'")
    return Source(path, np.load(path, mmap_mode="r", allow_pickle=False))


def _npz(path: Path, modality: str, key: str | None) -> Source:
    with np.load(path, allow_pickle=False) as archive:
        headers = {name: _NpzHeader(_npz_shape(archive, name), name) for name in archive.files}

        def load(header: _NpzHeader) -> np.ndarray:
            mapped = npz_mapped(path, archive.zip, f"{header.name}.npy") if len(header.shape) == 2 else None
            return archive[header.name] if mapped is None else mapped

        return _choose(path, modality, key, headers, load)


class _NpzHeader(NamedTuple):
    """An array of an npz file before it is loaded: the file may hold many large ones."""

    shape: tuple[int, ...]
    name: str


def _npz_shape(archive: Any, name: str) -> tuple[int, ...]:
    with archive.zip.open(f"{name}.npy") as member:
        return npy_header(member)[0]


def _hdf5(path: Path, modality: str, key: str | None) -> Source:
    import h5py

    arrays: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        # An import reads the file that it was given: visititems does not follow links to other files, and these hold their data there.
        if isinstance(node, h5py.Dataset) and not node.external and not node.is_virtual:
            arrays[name] = node

    with h5py.File(path, "r") as file:
        file.visititems(visit)

        def load(dataset: Any) -> np.ndarray:
            if h5py.check_string_dtype(dataset.dtype):
                return np.array(dataset.asstr("utf-8")[:].tolist(), dtype=np.str_)
            mapped = hdf5_mapped(path, dataset) if dataset.ndim == 2 else None
            return dataset[()] if mapped is None else mapped

        return _choose(path, modality, key, arrays, load)


def _safetensors(path: Path, modality: str, key: str | None) -> Source:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            arrays: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            listed = (file.metadata() or {}).get("ids")
    except SafetensorError as error:
        raise CalmrlError(f"'{path}' cannot be read as safetensors: {error}") from None
    if listed is not None:
        arrays["ids"] = json.loads(listed)
    return _choose(path, modality, key, arrays, _array)


def _torch(path: Path, modality: str, key: str | None) -> Source:
    import torch

    with warnings.catch_warnings():
        # A foreign pickle is refused in one sentence; its protocol number is no news beside that.
        warnings.simplefilter("ignore")
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, torch.Tensor):
        loaded = {"features": loaded}
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise CalmrlError(f"'{path}' holds a {type(loaded).__name__}; expected a tensor or a dict of tensors")
    tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if key is None and len(tensors) == len(loaded) and len(shapes) == 1 and len(shapes.pop()) == 1:
        return Source(path, np.stack([_array(t) for t in tensors.values()]), np.array(list(tensors), dtype=np.str_))
    return _choose(path, modality, key, dict(loaded), _array)


def _parquet(path: Path, modality: str, key: str | None) -> Source:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    names = table.column_names
    id_name = next((name for name in _ID_KEYS if name in names), None)
    mask_name = next((name for name in _MASK_KEYS if name in names and name != key), None)
    if id_name and table[id_name].null_count:
        raise CalmrlError(f"'{path}': row {table[id_name].is_null().to_pylist().index(True)} has no id")
    ids = np.array([str(value) for value in table[id_name].to_pylist()], dtype=np.str_) if id_name else None
    observed = np.array(table[mask_name].to_pylist(), dtype=bool) if mask_name else None
    lists = [name for name in names if _is_list(table.schema.field(name).type)]
    chosen = key or next((name for name in (modality, *_FEATURE_KEYS) if name in lists), lists[0] if len(lists) == 1 else None)
    if chosen in names and chosen in lists:
        return Source(path, _list_column(path, table[chosen].combine_chunks()), ids, observed)
    if chosen is not None or lists:
        raise _unclear(path, modality, key, lists)
    numbers = [n for n in names if n not in (id_name, mask_name) and _is_number(table.schema.field(n).type)]
    if not numbers:
        raise _unclear(path, modality, key, names)
    columns = [table[name].to_numpy(zero_copy_only=False) for name in numbers]
    return Source(path, np.stack(columns, axis=1), ids, observed)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind))


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _list_column(path: Path, column: Any) -> np.ndarray:
    """Lists of equal length -> [R, d]; a null list becomes a row of NaN, which is a missing row."""
    import pyarrow.compute as pc

    valid = column.is_valid().to_numpy(zero_copy_only=False)
    lengths = pc.unique(pc.list_value_length(column).drop_null()).to_pylist()
    if len(lengths) != 1:
        raise CalmrlError(f"'{path}': the lists of features have lengths {sorted(lengths)[:4]}; expected one length")
    values = column.filter(column.is_valid()).flatten().to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiu":
        raise CalmrlError(f"'{path}': the lists of features hold {values.dtype}; expected numbers")
    rows = values.reshape(-1, int(lengths[0]))
    if valid.all():
        return rows
    padded = np.full((len(column), rows.shape[1]), np.nan, dtype=values.dtype if values.dtype.kind == "f" else np.float64)
    padded[valid] = rows
    return padded


def _choose(
    path: Path,
    modality: str,
    key: str | None,
    arrays: Mapping[str, Any],
    load: Callable[[Any], np.ndarray] = lambda array: array,
) -> Source:
    """Pick features, ids and mask among the arrays of a file."""
    matrices = [name for name, array in arrays.items() if len(getattr(array, "shape", ())) == 2 and name not in _MASK_KEYS]
    wanted = (modality, f"features/{modality}", *_FEATURE_KEYS)
    chosen = key or next((name for name in wanted if name in matrices), matrices[0] if len(matrices) == 1 else None)
    if chosen is None or chosen not in arrays:
        raise _unclear(path, modality, key, matrices)
    beside = chosen.rpartition("/")[0]

    def companion(names: tuple[str, ...]) -> np.ndarray | None:
        for name in (f"{beside}/{n}" if inside else n for inside in (bool(beside), False) for n in names):
            if name in arrays and name != chosen:
                return np.asarray(load(arrays[name]))
        return None

    ids, observed = companion(_ID_KEYS), companion(_MASK_KEYS)
    return Source(
        path,
        load(arrays[chosen]),
        None if ids is None else as_strings(ids),
        None if observed is None else as_mask(observed, f"the mask in '{path}'"),
    )


def as_strings(ids: np.ndarray) -> np.ndarray:
    """Ids as str, [R]: numbers as they print, bytes as UTF-8 (UnicodeDecodeError if they are not)."""
    return np.char.decode(ids, "utf-8") if ids.dtype.kind == "S" else ids.astype(np.str_)


def as_mask(values: np.ndarray, what: str) -> np.ndarray:
    """`values` as bool; CalmrlError unless they are True and False, or 1 and 0."""
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        raise CalmrlError(f"{what} holds {values.dtype} values other than 0 and 1")
    return values.astype(bool)


def _array(value: Any) -> np.ndarray:
    """A tensor or a list of strings as a numpy array; bfloat16, which numpy lacks, exactly as float32."""
    import torch

    if isinstance(value, torch.Tensor):
        return (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
    if isinstance(value, (list, tuple)) and all(isinstance(entry, str) for entry in value):
        return np.array(value, dtype=np.str_)
    return np.asarray(value)


def _unclear(path: Path, modality: str, key: str | None, names: list[str]) -> CalmrlError:
    has = ", ".join(names[:12]) or "nothing usable"
    if key is not None:
        return CalmrlError(f"'{path}' has no features called '{key}'", hint=f"it has: {has}")
    return CalmrlError(
        f"'{path}' does not say which of its arrays are the features of '{modality}'",
        hint=f"name one as FILE:KEY; it has: {has}",
    )


_SAFE = "save it again as plain arrays: np.save, np.savez (ids as strings, not objects), torch.save of a tensor or a dict of tensors"
_READERS: dict[str, Callable[[Path, str, str | None], Source]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".parquet": _parquet,
    ".safetensors": _safetensors,
    ".pt": _torch,
    ".pth": _torch,
}
