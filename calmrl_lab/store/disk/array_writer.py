"""Writing Zarr v3 arrays, in one layout: regular chunks of whole rows, little-endian bytes, no compressor, every chunk present.

It is what any Zarr tool reads, its bytes depend on nothing but the values, and a chunk file can be read or mapped as it is, at
several times the speed of the general path. (Strings are vlen-utf8.)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Shaped

from calmrl_lab.runtime.progress import progress
from calmrl_lab.store.disk.files import FileTree

# Zarr data types that a chunk file can hold as plain bytes, and the value of a chunk's unused tail.
PLAIN_TYPES: dict[str, Any] = {
    "bool": False,
    **dict.fromkeys(("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"), 0),
    **dict.fromkeys(("float16", "float32", "float64"), 0.0),
}
NUMBER_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}]
# Types of one byte have no order of bytes, and Zarr writes their codec without one.
BYTE_CODECS = [{"name": "bytes"}]
STRING_CODECS = [{"name": "vlen-utf8", "configuration": {}}]


def array_metadata(shape: tuple[int, ...], chunk: tuple[int, ...], data_type: str) -> dict[str, Any]:
    if data_type == "string":
        codecs: list[Any] = STRING_CODECS
    else:
        codecs = BYTE_CODECS if np.dtype(data_type).itemsize == 1 else NUMBER_CODECS
    return {
        "shape": list(shape),
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": PLAIN_TYPES.get(data_type, ""),
        "codecs": codecs,
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def write_group(tree: FileTree, name: str, attributes: dict[str, Any]) -> None:
    tree.put_json(
        f"{name}/zarr.json" if name else "zarr.json", {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    )


def write_rows(
    tree: FileTree,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    blocks: Iterator[Shaped[np.ndarray, "*shape"]],
    chunk_rows: int | None = None,
) -> None:
    """Write the rows that `blocks` yield (of any sizes, `shape[0]` in all) in chunks of `chunk_rows` (default: one chunk)."""
    rows_a_chunk = max(1, min(chunk_rows or shape[0], shape[0]))
    chunk_shape = (rows_a_chunk, *(max(1, extent) for extent in shape[1:]))
    tree.put_json(f"{name}/zarr.json", array_metadata(shape, chunk_shape, dtype.name))
    buffer, filled, index = np.zeros(chunk_shape, dtype=dtype.newbyteorder("<")), 0, 0
    tail = "/0" * (len(shape) - 1)
    for block in _tracked_rows(blocks, f"writing {name}", shape[0]):
        start = 0
        while start < len(block):
            count = min(rows_a_chunk - filled, len(block) - start)
            buffer[filled : filled + count] = block[start : start + count]
            filled, start = filled + count, start + count
            if filled == rows_a_chunk:
                tree.put(f"{name}/c/{index}{tail}", buffer.data)
                filled, index = 0, index + 1
    if filled:
        buffer[filled:] = PLAIN_TYPES[dtype.name]
        tree.put(f"{name}/c/{index}{tail}", buffer.data)
        index += 1
    assert index == math.ceil(shape[0] / rows_a_chunk), f"{name}: the blocks do not add up to {shape[0]} rows"


def _tracked_rows(blocks: Iterator[np.ndarray], label: str, total: int) -> Iterator[np.ndarray]:
    """`blocks` as progress counted in rows."""
    with progress(label, total, "rows") as task:
        for block in blocks:
            yield block
            task.advance(len(block))


def write_array(tree: FileTree, name: str, values: Shaped[np.ndarray, "*shape"]) -> None:
    """Write a small array as one chunk."""
    write_rows(tree, name, values.shape, values.dtype, iter([values]))


def write_strings(tree: FileTree, name: str, values: Shaped[np.ndarray, " n"]) -> None:
    """Write strings as one vlen-utf8 chunk: their number, then length and UTF-8 bytes of each."""
    tree.put_json(f"{name}/zarr.json", array_metadata((len(values),), (max(1, len(values)),), "string"))
    pieces = [struct.pack("<I", len(values))]
    for value in values.tolist():
        encoded = value.encode()
        pieces += (struct.pack("<I", len(encoded)), encoded)
    if len(values):
        tree.put(f"{name}/c/0", b"".join(pieces))
