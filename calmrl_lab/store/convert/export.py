"""A store to one HDF5 or npz file, or a folder of Parquet files: everything in it, exactly, for tools that do not read Zarr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, Self

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime.atomic_folders import new_directory, new_file
from calmrl_lab.store.convert.npz import NpzWriter
from calmrl_lab.store.disk.files import encode_json
from calmrl_lab.store.reader import FeatureStore
from calmrl_lab.store.schema import CHUNK_ROWS

FORMATS = ("hdf5", "npz", "parquet")
ENDINGS = {".h5": "hdf5", ".hdf5": "hdf5", ".npz": "npz", ".parquet": "parquet"}
# What is not an array: kept as JSON texts under these names (HDF5 attributes, npz entries, store.json beside the Parquet
# files).
TEXTS = ("attributes", "failures", "provenance")
ITEMS_FILE = "items.parquet"
TEXTS_FILE = "store.json"
HEADS_FILE = "heads.safetensors"


def export_store(store: FeatureStore, out: str | Path, form: str | None = None, overwrite: bool = False) -> Path:
    """Write all of `store` to `out` and return that path; `calmrl_lab.store.convert.import_arrays.restore` makes the same store of it again.

    form: hdf5, npz or parquet; default: by the ending of `out` (.h5, .hdf5, .npz, .parquet). HDF5 and npz hold one array
    for each array of the store, of the same name; Parquet is a folder with items.parquet (ids, splits, groups, labels,
    reasons), one file per modality (columns id, features), heads.safetensors and store.json. Nothing is left behind when
    writing fails.
    """
    out = Path(out)
    form = form or ENDINGS.get(out.suffix.lower())
    if form not in FORMATS:
        asked = f"'{form}'" if form else f"the ending of '{out}'"
        raise CalmrlError(f"{asked} is no export format", hint=f"formats: {', '.join(FORMATS)} (.h5, .npz, .parquet)")
    if form == "parquet":
        with new_directory(out, overwrite, _looks_exported) as folder:
            _write_parquet(store, folder)
        return out
    with new_file(out, overwrite) as file:
        (_write_hdf5 if form == "hdf5" else _write_npz)(store, file)
    return out


def texts(store: FeatureStore) -> dict[str, str]:
    """The parts of a store that are no arrays, as JSON."""
    parts: dict[str, Any] = {"attributes": store.attributes, "failures": store.failures(), "provenance": store.provenance}
    return {name: encode_json(parts[name]).decode() for name in TEXTS}


def _strings(store: FeatureStore) -> dict[str, np.ndarray]:
    labels = {f"label/{name}": values for name, values in store.labels.items()}
    return {"ids": store.ids, "split": store.split, "group": store.group, **labels}


def _small_arrays(store: FeatureStore) -> dict[str, np.ndarray]:
    offsets = {f"offsets/{name}": store.offsets(name) for name in store.modalities}
    return {"mask": store.mask, "reason": store.reason, **offsets, **{f"heads/{n}": head for n, head in store.heads.items()}}


def _blocks(store: FeatureStore, modality: str) -> Iterator[np.ndarray]:
    total = int(store.offsets(modality)[-1])
    for start in range(0, total, CHUNK_ROWS):
        yield store.feature_range(modality, start, min(start + CHUNK_ROWS, total))


def _write_hdf5(store: FeatureStore, path: Path) -> None:
    import h5py

    with path.open("w+b", buffering=0) as raw, _UnfailingFile(raw) as disk, h5py.File(disk, "w") as file:
        file.attrs.update(texts(store))
        for name, strings in _strings(store).items():
            file.create_dataset(name, data=strings.tolist(), dtype=h5py.string_dtype(), shape=(len(store),))
        for name, array in _small_arrays(store).items():
            file.create_dataset(name, data=array)
        for spec in store.specs:
            total = int(store.offsets(spec.name)[-1])
            data = file.create_dataset(f"features/{spec.name}", shape=(total, spec.dimension), dtype=spec.dtype)
            for number, block in enumerate(_blocks(store, spec.name)):
                data[number * CHUNK_ROWS : number * CHUNK_ROWS + len(block)] = block
                disk.raise_error()


class _UnfailingFile:
    """A file that never tells HDF5 of an error: the library ends the process when it cannot write what it still holds.

    What cannot be written is dropped, and the first error is raised on leaving, or by `raise_error`.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._error: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.raise_error()

    def raise_error(self) -> None:
        """Raise the OSError that was met, if there was one."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        count = len(rest)
        while len(rest) and self._error is None:
            try:
                rest = rest[self._file.write(rest) :]
            except OSError as error:
                self._error = error
        return count

    def truncate(self, size: int) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size

    def read(self, count: int = -1) -> bytes:
        return self._file.read(count) or b""

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer) or 0

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Nothing is held back."""


def _write_npz(store: FeatureStore, path: Path) -> None:
    with NpzWriter(path) as file:
        arrays = {**{name: np.array(text) for name, text in texts(store).items()}, **_strings(store), **_small_arrays(store)}
        for name, array in arrays.items():
            file.array(name, array)
        for spec in store.specs:
            shape = (int(store.offsets(spec.name)[-1]), spec.dimension)
            file.blocks(f"features/{spec.name}", shape, np.dtype(spec.dtype), _blocks(store, spec.name))


def _write_parquet(store: FeatureStore, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.numpy import save_file

    columns = {name: pa.array(values.tolist(), pa.string()) for name, values in _strings(store).items()}
    reasons = {f"reason/{m}": pa.array(np.ascontiguousarray(store.reason[:, j])) for j, m in enumerate(store.modalities)}
    pq.write_table(pa.table({**columns, **reasons}), folder / ITEMS_FILE)
    (folder / TEXTS_FILE).write_bytes(encode_json({name: json.loads(text) for name, text in texts(store).items()}))
    if store.heads:
        save_file(store.heads, folder / HEADS_FILE)
    (folder / "features").mkdir()
    for spec in store.specs:
        kind = pa.list_(pa.from_numpy_dtype(spec.dtype), spec.dimension)
        schema = pa.schema([("id", pa.string()), ("features", kind)])
        owners = np.repeat(np.arange(len(store)), np.diff(store.offsets(spec.name)))
        # Embeddings do not compress; Parquet's dictionaries and codecs would only cost time.
        with pq.ParquetWriter(
            folder / "features" / f"{spec.name}.parquet", schema, compression="none", use_dictionary=["id"]
        ) as writer:
            row = 0
            for block in _blocks(store, spec.name):
                ids = pa.array(store.ids[owners[row : row + len(block)]].tolist(), pa.string())
                row += len(block)
                lists = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), spec.dimension)
                writer.write_table(pa.Table.from_arrays([ids, lists.cast(kind)], schema=schema))


def _looks_exported(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and (path / TEXTS_FILE).is_file() and (path / ITEMS_FILE).is_file()
