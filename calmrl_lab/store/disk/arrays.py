"""Reading Zarr v3 arrays: straight from the chunk files where these hold plain rows, through zarr otherwise."""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.disk.array_writer import BYTE_CODECS, NUMBER_CODECS, PLAIN_TYPES

_MAPPED_FILES = 128
# Pages of maps count as memory of the process once they were touched, and a pass over all rows would end with the whole store. A read of more than
# this share of a chunk's rows gives its pages back; of chunks that are read here and there, again and again, so many bytes stay.
_PASSED_SHARE, _MOST_KEPT = 0.02, 128 << 20
# Metadata beyond these is damage or mischief: 10^13 values are 20 TB.
_MOST_VALUES, _MOST_CHUNKS = 10**13, 10**7


@dataclass(frozen=True)
class _Layout:
    shape: tuple[int, ...]
    data_type: str
    chunk: tuple[int, ...]
    # True if every chunk file is nothing but whole rows, or one vlen-utf8 list of strings.
    direct: bool
    # True if the names of all chunk files (or shards) are known, so that a missing one can be seen.
    files_known: bool
    separator: str


class StoredArray:
    """One array of a store, opened for reading.

    `guard(name)` is called with the name of each file before its bytes are first used (it checks the checksum); reading raises
    CalmrlError naming the file if it is missing, too short or not what the metadata say.
    """

    def __init__(self, root: Path, name: str, guard: Callable[[str], None]) -> None:
        self.root, self.name, self.guard = root, name, guard
        guard(f"{name}/zarr.json")
        self._layout = _parse(root, name)
        self._maps: OrderedDict[int, tuple[mmap.mmap, np.ndarray]] = OrderedDict()
        self._kept: set[int] = set()
        self._zarr: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": OrderedDict(), "_kept": set(), "_zarr": None}

    @property
    def shape(self) -> tuple[int, ...]:
        return self._layout.shape

    @property
    def direct(self) -> bool:
        """True if chunk files are read as they are, False if zarr decodes them."""
        return self._layout.direct

    @property
    def chunk_rows(self) -> int:
        return self._layout.chunk[0]

    @property
    def is_string(self) -> bool:
        return self._layout.data_type == "string"

    @property
    def dtype(self) -> np.dtype:
        assert not self.is_string
        return np.dtype(self._layout.data_type)

    def chunk_files(self) -> list[str]:
        """Names of the chunk files (or shards) that must exist; empty where the layout does not say."""
        layout = self._layout
        if not layout.files_known or 0 in layout.shape:
            return []
        counts = [math.ceil(extent / chunk) for extent, chunk in zip(layout.shape, layout.chunk, strict=True)]
        keys = (layout.separator.join(map(str, index)) for index in np.ndindex(*counts))
        return [f"{self.name}/c{layout.separator}{key}" for key in keys]

    def read(
        self, start: int = 0, stop: int | None = None, out: Shaped[np.ndarray, "*shape"] | None = None
    ) -> Shaped[np.ndarray, "*shape"]:
        """The rows start:stop (default: all), in a new array or in `out` (contiguous, of the right shape and dtype)."""
        stop = self.shape[0] if stop is None else stop
        # The last chunk of a file goes on with zeros where the rows end.
        if not 0 <= start <= stop <= self.shape[0]:
            raise CalmrlError(f"'{self.root}': {self.name} has rows 0 to {self.shape[0]}, not {start} to {stop}")
        if self.is_string:
            return (self._strings() if self.direct else self._through_zarr())[start:stop]
        out = np.empty((stop - start, *self.shape[1:]), dtype=self.dtype) if out is None else out
        if not self.direct:
            if stop > start:
                out[:] = self._through_zarr()[start:stop]
            return out
        step = self.chunk_rows
        # One after the other: the copy from the page cache is bound by memory, and threads made it no faster.
        for chunk in range(start // step, math.ceil(stop / step) if stop > start else 0):
            low, high = max(start, chunk * step), min(stop, (chunk + 1) * step)
            self._read_into(chunk, low - chunk * step, out[low - start : high - start])
        return out

    def rows(self, index: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "*shape"]:
        """The rows at `index`, in that order, repeats allowed. Only these rows are touched where the layout allows it."""
        index = np.asarray(index, dtype=np.int64)
        if len(index) and not (index.min() >= 0 and index.max() < self.shape[0]):
            wrong = int(index.min()) if index.min() < 0 else int(index.max())
            raise CalmrlError(f"'{self.root}': {self.name} has rows 0 to {self.shape[0] - 1}, not {wrong}")
        if not self.direct:
            unique, back = np.unique(index, return_inverse=True)
            return self._through_zarr().oindex[unique][back] if len(index) else np.empty((0, *self.shape[1:]), self.dtype)
        out = np.empty((len(index), *self.shape[1:]), dtype=self.dtype)
        in_order = bool((index[1:] >= index[:-1]).all())
        order = slice(None) if in_order else np.argsort(index, kind="stable")
        ordered = index[order]
        edges = np.searchsorted(ordered, np.arange(math.ceil(self.shape[0] / self.chunk_rows) + 1) * self.chunk_rows)
        for chunk in np.flatnonzero(np.diff(edges)):
            part = slice(edges[chunk], edges[chunk + 1])
            rows, local = self._mapped(int(chunk)), ordered[part] - chunk * self.chunk_rows
            if isinstance(order, slice):
                np.take(rows, local, axis=0, out=out[part])
            else:
                out[order[part]] = rows[local]
            self._give_back(int(chunk), len(local))
        return out

    def _chunk_name(self, chunk: int) -> str:
        return f"{self.name}/c/{chunk}" + "/0" * (len(self.shape) - 1)

    def _chunk_bytes(self) -> int:
        return math.prod(self._layout.chunk) * self.dtype.itemsize

    def _open(self, name: str, expected: int | None) -> int:
        self.guard(name)
        try:
            handle = os.open(self.root / name, os.O_RDONLY)
        except FileNotFoundError:
            raise CalmrlError(f"store '{self.root}' is damaged: the file {name} is missing") from None
        except OSError as error:
            raise CalmrlError(f"store '{self.root}': the file {name} cannot be read: {error.strerror}") from None
        size = os.fstat(handle).st_size
        if expected is not None and size != expected:
            os.close(handle)
            raise CalmrlError(f"store '{self.root}' is damaged: the file {name} has {size} bytes; expected {expected}")
        return handle

    def _read_into(self, chunk: int, row: int, out: np.ndarray) -> None:
        name = self._chunk_name(chunk)
        handle = self._open(name, self._chunk_bytes())
        try:
            view = out.reshape(-1).view(np.uint8).data if out.size else memoryview(b"")
            position = row * (self._chunk_bytes() // self.chunk_rows)
            while view:
                count = os.preadv(handle, [view], position)
                if count == 0:
                    raise CalmrlError(f"store '{self.root}' is damaged: the file {name} ends early")
                view, position = view[count:], position + count
        finally:
            os.close(handle)

    def _mapped(self, chunk: int) -> np.ndarray:
        """The rows of a chunk file, mapped; the least recently used of many maps is dropped (each holds a file open)."""
        if chunk in self._maps:
            self._maps.move_to_end(chunk)
            return self._maps[chunk][1]
        handle = self._open(self._chunk_name(chunk), self._chunk_bytes())
        try:
            file = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(handle)
        rows = np.frombuffer(file, dtype=self.dtype).reshape(self._layout.chunk)
        self._maps[chunk] = file, rows
        if len(self._maps) > _MAPPED_FILES:
            self._maps.popitem(last=False)
        return rows

    def _give_back(self, chunk: int, rows: int) -> None:
        """Drop pages of maps after `rows` rows of a chunk were read: the system keeps them, and they are there again when they are touched."""
        if rows > _PASSED_SHARE * self.chunk_rows:
            passed = [chunk]
        else:
            self._kept.add(chunk)
            passed = list(self._kept) if len(self._kept) * self._chunk_bytes() > _MOST_KEPT else []
        for one in passed if hasattr(mmap, "MADV_DONTNEED") else []:
            if one in self._maps:
                self._maps[one][0].madvise(mmap.MADV_DONTNEED)
        self._kept.difference_update(passed)

    def _strings(self) -> np.ndarray:
        if self.shape[0] == 0:
            return np.empty(0, dtype="<U1")
        name = self._chunk_name(0)
        os.close(self._open(name, None))
        return np.array(
            _decode_strings((self.root / name).read_bytes(), self.shape[0], f"store '{self.root}': {name}"), dtype=np.str_
        )

    def _through_zarr(self) -> Any:
        if self._zarr is None:
            import zarr

            for path in sorted((self.root / self.name).rglob("*")):
                if path.is_file():
                    self.guard(path.relative_to(self.root).as_posix())
            self._zarr = zarr.open_array(self.root / self.name, mode="r")
        if not self.is_string:
            return self._zarr
        return np.array(self._zarr[:].tolist(), dtype=np.str_)


def _parse(root: Path, name: str) -> _Layout:
    where = f"store '{root}': {name}/zarr.json"
    metadata = read_json(root, f"{name}/zarr.json")
    try:
        if metadata["zarr_format"] != 3 or metadata["node_type"] != "array":
            raise CalmrlError(f"{where} is not the metadata of a Zarr v3 array")
        shape, data_type = tuple(metadata["shape"]), metadata["data_type"]
        regular = metadata["chunk_grid"]["name"] == "regular"
        chunk = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"]) if regular else shape
        encoding = metadata.get("chunk_key_encoding", {})
        separator = encoding.get("configuration", {}).get("separator", "/")
        codecs = metadata["codecs"]
        names = [codec["name"] if isinstance(codec, dict) else codec for codec in codecs]
    except (KeyError, TypeError):
        raise CalmrlError(f"{where} is not the metadata of a Zarr v3 array") from None
    if (
        not all(isinstance(extent, int) and extent >= 0 for extent in shape)
        or len(chunk) != len(shape)
        or not shape
        or 0 in chunk
    ):
        raise CalmrlError(f"{where} has shape {list(shape)} in chunks {list(chunk)}")
    if math.prod(shape) > _MOST_VALUES or math.prod(-(-e // c) for e, c in zip(shape, chunk, strict=True)) > _MOST_CHUNKS:
        raise CalmrlError(f"{where} has shape {list(shape)} in chunks {list(chunk)}, more than any store has")
    plain_grid = regular and encoding.get("name") == "default" and not metadata.get("storage_transformers")
    whole_rows = all(c >= extent for c, extent in zip(chunk[1:], shape[1:], strict=True))
    exact_rows = chunk[1:] == tuple(max(1, extent) for extent in shape[1:])
    if data_type == "string":
        direct = plain_grid and separator == "/" and names == ["vlen-utf8"] and chunk[0] >= shape[0]
    else:
        if data_type not in PLAIN_TYPES:
            raise CalmrlError(f"{where} has data type {data_type!r}, which no array of a store has")
        little = codecs in (NUMBER_CODECS, BYTE_CODECS) if np.dtype(data_type).itemsize == 1 else codecs == NUMBER_CODECS
        direct = plain_grid and separator == "/" and little and whole_rows and exact_rows and sys.byteorder == "little"
    return _Layout(shape, str(data_type), chunk, direct, plain_grid, separator)


def _decode_strings(data: bytes, count: int, where: str) -> list[str]:
    try:
        (found,) = struct.unpack_from("<I", data)
        strings, position = [], 4
        unpack = struct.Struct("<I").unpack_from
        for _ in range(found):
            (length,) = unpack(data, position)
            position += 4 + length
            if position > len(data):
                raise CalmrlError(f"{where} is damaged: it ends early")
            strings.append(data[position - length : position].decode())
    except (struct.error, UnicodeDecodeError):
        raise CalmrlError(f"{where} is damaged: not a list of UTF-8 strings") from None
    if len(strings) < count:
        raise CalmrlError(f"{where} holds {len(strings)} strings; expected {count}")
    return strings[:count]


def read_json(root: Path, name: str) -> Any:
    """A JSON file of a store; CalmrlError naming it if it is missing or cut off."""
    try:
        return json.loads((root / name).read_bytes())
    except FileNotFoundError:
        raise CalmrlError(f"store '{root}' is damaged: the file {name} is missing") from None
    except (ValueError, RecursionError):
        raise CalmrlError(f"store '{root}' is damaged: the file {name} is cut off or not JSON") from None
    except OSError as error:
        raise CalmrlError(f"store '{root}': the file {name} cannot be read: {error.strerror}") from None
