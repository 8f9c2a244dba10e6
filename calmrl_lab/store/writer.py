"""Writer of feature stores: arrays are checked first, a store is written whole or not at all, and equal values give equal bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime.atomic_folders import new_directory
from calmrl_lab.store.disk.array_writer import write_array, write_group, write_rows, write_strings
from calmrl_lab.store.disk.files import FileTree, encode_json, json_bytes, looks_like_store
from calmrl_lab.store.schema import (
    CHUNK_ROWS,
    FAILURES_FILE,
    MAX_STRING,
    PROVENANCE_FILE,
    SPLITS,
    ModalitySpec,
    Reason,
    check_name,
    root_attributes,
)

Rows = Float[np.ndarray, "rows dimension"]


def write_store(
    path: str | Path,
    *,
    dataset: str,
    modalities: Sequence[ModalitySpec],
    ids: Sequence[str] | Shaped[np.ndarray, " n"],
    split: Sequence[str] | Shaped[np.ndarray, " n"],
    features: Mapping[str, Rows | Iterable[Rows]],
    offsets: Mapping[str, Int[np.ndarray, " n_plus_1"]],
    group: Sequence[str] | Shaped[np.ndarray, " n"] | None = None,
    labels: Mapping[str, Sequence[str] | Shaped[np.ndarray, " n"]] | None = None,
    reason: UInt8[np.ndarray, "n k"] | None = None,
    licence: str = "",
    attribution: str = "",
    provenance: Mapping[str, Any] | None = None,
    heads: Mapping[str, Float[np.ndarray, "*shape"]] | None = None,
    failures: Iterable[Mapping[str, Any]] = (),
    attributes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a feature store of n items and k modalities to `path` and return the path.

    ids: n unique, non-empty strings. split: train, validation or test for each. group: default the id. labels: name -> n
    strings. features: modality -> all rows [R_m, d_m], or an iterable of blocks of them in order (for more than fits in
    memory). Values are
        rounded to the modality's dtype.
    offsets: modality -> int64 [n+1]; item i owns rows offsets[i]:offsets[i+1].
    reason: [n, k], 0 exactly where the item owns a row of the modality (see `Reason`); default: every gap is absent by nature.
    heads: name -> the encoders' own projection weights. failures: one record a failed medium, kept in failures.jsonl.
    provenance: when, where, how; the one file that does not enter the digest. attributes: further attributes of the root group.

    Nothing exists at `path` until everything is there; an existing store is replaced only with `overwrite`. Raises
    CalmrlError if the parts contradict each other, a feature is NaN or infinite (also after rounding), or an item has no
    modality and every reason says "absent by nature": such an item is nothing to align. One whose modalities failed or were
    not extracted is kept.
    """
    path, specs = Path(path), tuple(modalities)
    names = _modality_names(specs)
    n = len(ids)
    id_array = _strings("ids", ids, n)
    _check_ids(id_array)
    split_array = _strings("split", split, n)
    _check_splits(split_array, id_array)
    group_array = id_array if group is None else _strings("group", group, n)
    label_arrays = {
        check_name("label", name): _strings(f"label '{name}'", values, n) for name, values in (labels or {}).items()
    }
    head_arrays = {check_name("head", name): _head(name, values) for name, values in (heads or {}).items()}
    for kind, given in (("features", features), ("offsets", offsets)):
        if set(given) != set(names):
            raise CalmrlError(f"{kind} are given for {_list(given)}; the modalities are {_list(names)}")
    starts = {name: _check_offsets(name, offsets[name], n) for name in names}
    mask = np.stack([np.diff(starts[name]) > 0 for name in names], axis=1)
    reasons = _check_reason(reason, mask, id_array, names)

    with new_directory(path, overwrite, looks_like_store) as partial:
        tree = FileTree(partial)
        write_group(tree, "", root_attributes(dataset, specs, licence, attribution, attributes or {}))
        write_strings(tree, "ids", id_array)
        write_strings(tree, "split", split_array)
        write_strings(tree, "group", group_array)
        write_array(tree, "mask", mask)
        write_array(tree, "reason", reasons)
        write_group(tree, "features", {})
        write_group(tree, "offsets", {})
        for spec in specs:
            count = int(starts[spec.name][-1])
            blocks = _checked_blocks(spec, features[spec.name], starts[spec.name], id_array)
            write_rows(tree, f"features/{spec.name}", (count, spec.dimension), np.dtype(spec.dtype), blocks, CHUNK_ROWS)
            write_array(tree, f"offsets/{spec.name}", starts[spec.name])
        for kind, arrays, write in (("label", label_arrays, write_strings), ("heads", head_arrays, write_array)):
            if arrays:
                write_group(tree, kind, {})
            for name in sorted(arrays):
                write(tree, f"{kind}/{name}", arrays[name])
        lines = b"".join(encode_json(dict(record)) for record in failures)
        if lines:
            tree.put(FAILURES_FILE, lines)
        tree.put(PROVENANCE_FILE, json_bytes(dict(provenance or {})), counted=False)
        tree.seal()
    return path


def _modality_names(specs: tuple[ModalitySpec, ...]) -> list[str]:
    names = [spec.name for spec in specs]
    if not names:
        raise CalmrlError("a store needs at least one modality")
    for name in names:
        if names.count(name) > 1:
            raise CalmrlError(f"the modality '{name}' is given twice")
    return names


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _strings(what: str, values: Sequence[str] | np.ndarray, n: int) -> np.ndarray:
    """`values` as a numpy str array [n]; CalmrlError if they are not n storable strings."""
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    if len(listed) != n:
        raise CalmrlError(f"{what} has {len(listed)} entries; expected {n}, one per item")
    for position, value in enumerate(listed):
        if not isinstance(value, str):
            raise CalmrlError(f"{what}[{position}] is {value!r}; expected a string")
        # numpy drops trailing NULs, and one enormous string would widen every entry of the array.
        if "\0" in value or len(value) > MAX_STRING:
            flaw = "holds a NUL character" if "\0" in value else f"has {len(value)} characters (at most {MAX_STRING})"
            raise CalmrlError(f"{what}[{position}] {flaw} and cannot be stored: {value[:40]!r}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise CalmrlError(f"{what}[{position}] is not valid Unicode: {value[:40]!r}") from None
    return np.array(listed, dtype=np.str_) if listed else np.empty(0, dtype="<U1")


def _check_ids(ids: np.ndarray) -> None:
    if len(ids) == 0:
        raise CalmrlError("a store needs at least one item")
    empty = np.flatnonzero(ids == "")
    if len(empty):
        raise CalmrlError(f"ids[{int(empty[0])}] is empty; every item needs an id")
    unique, first, counts = np.unique(ids, return_index=True, return_counts=True)
    if len(unique) < len(ids):
        repeated = int(first[counts > 1].min())
        where = np.flatnonzero(ids == ids[repeated])[:2].tolist()
        raise CalmrlError(
            f"ids must be unique: {str(ids[repeated])!r} is at positions {where[0]} and {where[1]}",
            hint="an item with several captions is one item with several rows",
        )


def _check_splits(split: np.ndarray, ids: np.ndarray) -> None:
    wrong = np.flatnonzero(~np.isin(split, SPLITS))
    if len(wrong):
        item = int(wrong[0])
        raise CalmrlError(f"item {str(ids[item])!r} has split {str(split[item])!r}; expected one of {', '.join(SPLITS)}")


def _head(name: str, values: Any) -> np.ndarray:
    head = np.ascontiguousarray(values)
    if head.dtype.name not in ("float16", "float32", "float64") or head.ndim == 0 or not np.isfinite(head).all():
        raise CalmrlError(
            f"head '{name}' must be an array of finite floating-point numbers, got {head.dtype} {list(head.shape)}"
        )
    return head


def _check_offsets(name: str, values: Any, n: int) -> np.ndarray:
    starts = np.asarray(values)
    if starts.shape != (n + 1,) or starts.dtype.kind not in "iu":
        raise CalmrlError(f"offsets of '{name}' are {starts.dtype} {list(starts.shape)}; expected whole numbers [{n + 1}]")
    starts = starts.astype(np.int64)
    if starts[0] != 0 or (np.diff(starts) < 0).any():
        raise CalmrlError(f"offsets of '{name}' must start at 0 and never fall")
    return starts


def _check_reason(reason: Any, mask: np.ndarray, ids: np.ndarray, names: list[str]) -> np.ndarray:
    if reason is None:
        reasons = np.where(mask, Reason.OBSERVED, Reason.ABSENT).astype(np.uint8)
    else:
        given = np.asarray(reason)
        if given.shape != mask.shape or given.dtype.kind not in "iu" or given.min() < 0 or given.max() > max(Reason):
            raise CalmrlError(
                f"reason is {given.dtype} {list(given.shape)}; expected [{len(ids)}, {len(names)}] of 0 to {max(Reason)}"
            )
        reasons = given.astype(np.uint8)
    wrong = np.argwhere((reasons == Reason.OBSERVED) != mask)
    if len(wrong):
        item, column = wrong[0].tolist()
        has = "owns rows" if mask[item, column] else "owns no row"
        raise CalmrlError(
            f"item {str(ids[item])!r} {has} of '{names[column]}', but its reason there is {int(reasons[item, column])} "
            f"({Reason(int(reasons[item, column])).words})"
        )
    nothing = np.flatnonzero((reasons == Reason.ABSENT).all(axis=1))
    if len(nothing):
        raise CalmrlError(
            f"{len(nothing)} of {len(ids)} items have no modality at all, the first is {str(ids[nothing[0]])!r}",
            hint="leave them out, or say that their modalities failed or were not extracted (reason 2 or 3)",
        )
    return reasons


def _checked_blocks(spec: ModalitySpec, given: Any, starts: np.ndarray, ids: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of a modality, rounded to its dtype, in blocks; CalmrlError at the first that cannot be stored."""
    expected, done = int(starts[-1]), 0
    shape = getattr(given, "shape", None)
    if shape is not None and tuple(shape) != (expected, spec.dimension):
        raise CalmrlError(
            f"features of '{spec.name}' are {list(shape)}; the offsets and the dimension say [{expected}, {spec.dimension}]"
        )
    blocks = (given[row : row + CHUNK_ROWS] for row in range(0, expected, CHUNK_ROWS)) if shape is not None else given
    for raw in blocks:
        block = np.asarray(raw)
        if block.ndim != 2 or block.shape[1] != spec.dimension or block.dtype.kind not in "fiu":
            raise CalmrlError(
                f"a block of features of '{spec.name}' is {block.dtype} {list(block.shape)}; expected [rows, {spec.dimension}]"
            )
        done += len(block)
        if done > expected:
            break
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = block.astype(spec.dtype)
        _check_values(spec, block, rounded, starts, ids, done - len(block))
        yield rounded
    if done != expected:
        more = "more than that" if done > expected else str(done)
        raise CalmrlError(f"the offsets of '{spec.name}' say {expected} rows of features; got {more}")


def _check_values(
    spec: ModalitySpec, block: np.ndarray, rounded: np.ndarray, starts: np.ndarray, ids: np.ndarray, row: int
) -> None:
    bad = ~np.isfinite(rounded).all(axis=1)
    if bad.any():
        first = int(np.argmax(bad))
        item = str(ids[np.searchsorted(starts, row + first, side="right") - 1])
        if np.isfinite(block[first]).all():
            largest = float(np.abs(block[first].astype(np.float64)).max())
            raise CalmrlError(
                f"a feature of '{spec.name}' of item {item!r} is {largest:g}, too large for {spec.dtype}",
                hint="store this modality as float32, or normalise the features",
            )
        raise CalmrlError(
            f"the features of '{spec.name}' of item {item!r} hold NaN or infinity ({int(bad.sum())} such rows in this block)",
            hint="mark the modality of such an item as missing; a row in a store is always a real feature",
        )
    lost = ~rounded.any(axis=1) & block.any(axis=1)
    if lost.any():
        item = str(ids[np.searchsorted(starts, row + int(np.argmax(lost)), side="right") - 1])
        raise CalmrlError(
            f"the features of '{spec.name}' of item {item!r} all become zero in {spec.dtype}",
            hint="store this modality as float32, or normalise the features",
        )
