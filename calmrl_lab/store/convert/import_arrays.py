"""Files of features from elsewhere to a store: items are matched by id across modalities, what is not there is a gap."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt8

from calmrl_lab._version import __version__
from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.array_files import Source, as_mask, read_source, reading_errors, split_key
from calmrl_lab.store.convert.item_tables import read_ids, read_table
from calmrl_lab.store.disk.integrity import sha256_of
from calmrl_lab.store.schema import CHUNK_ROWS, DTYPES, ModalitySpec, Reason, offsets_of
from calmrl_lab.store.splits import FRACTIONS, assign_splits, split_apart
from calmrl_lab.store.writer import write_store


def import_features(
    out: str | Path,
    modalities: Mapping[str, str | Path],
    *,
    ids: str | Path | Sequence[str] | None = None,
    ids_of: Mapping[str, str | Path] | None = None,
    masks: Mapping[str, str | Path] | None = None,
    table: str | Path | None = None,
    encoders: Mapping[str, str] | None = None,
    dataset: str = "imported",
    licence: str = "",
    attribution: str = "",
    dtype: str = "keep",
    normalise: bool = False,
    drop_empty: bool = False,
    fractions: Mapping[str, float] = FRACTIONS,
    split_seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write a store at `out` from one file a modality, and return that path.

    modalities: name -> FILE or FILE:KEY (see `calmrl_lab.store.convert.array_files`). An id that a file repeats is an item with several
    rows. ids: the ids of the rows of files that hold none (a list, or a file with one a line); ids_of: the same for single
    modalities.
        Without any ids, files of equal length are matched row by row and items are numbered.
    masks: name -> file with True where a row is observed; without a mask, rows that are NaN throughout are missing.
    table: a file with a column 'id', optionally 'split' and 'group', all others labels. It then names the items and their
    order;
        otherwise the store has every item that any file has. Without splits, whole groups are drawn by `fractions`,
        `split_seed`.
    encoders: name -> what made the features; else the encoder is 'imported' and the fingerprint that of the file.
    dtype: how to store; 'keep' what the file has (bfloat16 and small integers as float32). normalise: divide rows by their
    norm.

    Gaps: 'absent by nature' where a file has the item but marks it missing, 'not extracted' where it does not have it. An item
    that every file marks as missing is refused, or left out with `drop_empty`. Raises CalmrlError, before anything is
    written, if files are unreadable, lengths differ, ids do not fit, or features are not finite.
    """
    if not modalities:
        raise CalmrlError("nothing to import", hint="name at least one file as --modality NAME=FILE")
    for what, given in (("ids", ids_of), ("a mask", masks), ("an encoder", encoders)):
        for name in given or {}:
            if name not in modalities:
                raise CalmrlError(f"{what} is given for '{name}', but no such modality is imported")
    if dtype != "keep" and dtype not in DTYPES:
        raise CalmrlError(f"dtype '{dtype}' is unknown", hint=f"keep, {', '.join(DTYPES)}")
    shared = read_ids(ids) if isinstance(ids, (str, Path)) else None if ids is None else np.array(list(ids), dtype=np.str_)
    sources = {name: _complete(name, file, shared, ids_of or {}, masks or {}) for name, file in modalities.items()}
    row_ids = _ids_a_source(sources)
    items = read_table(table) if table is not None else None
    universe = _universe(row_ids, items, table)
    placed = {name: _Placed(source, row_ids[name], universe) for name, source in sources.items()}
    reason = np.stack([part.reason for part in placed.values()], axis=1)
    keep = _kept(reason, universe, drop_empty)
    split, group, labels = _about(items, universe, keep, fractions, split_seed)
    specs = [
        _spec(name, sources[name], str(modalities[name]), (encoders or {}).get(name), dtype, normalise) for name in modalities
    ]
    return write_store(
        out,
        dataset=dataset,
        modalities=specs,
        ids=universe[keep],
        split=split,
        group=group,
        labels=labels,
        features={spec.name: placed[spec.name].blocks(spec, normalise) for spec in specs},
        offsets={name: offsets_of(part.counts[keep]) for name, part in placed.items()},
        reason=reason[keep],
        licence=licence,
        attribution=attribution,
        provenance={
            "made_by": f"calmrl-lab {__version__} store import",
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "sources": {name: Path(str(file)).name for name, file in modalities.items()},
        },
        overwrite=overwrite,
    )


class _Placed:
    """Where the rows of one source belong: `counts` [N] rows an item, `reason` [N], and the rows themselves in item order."""

    def __init__(self, source: Source, ids: np.ndarray, universe: np.ndarray) -> None:
        order = np.argsort(universe, kind="stable")
        position = order[np.searchsorted(universe, ids, sorter=order)] if len(ids) else np.empty(0, dtype=np.int64)
        self.source = source
        observed = _observed(source)
        self._rows = np.flatnonzero(observed)[np.argsort(position[observed], kind="stable")]
        self.counts: Int[np.ndarray, " n"] = np.bincount(position[observed], minlength=len(universe))
        known = np.zeros(len(universe), dtype=bool)
        known[position] = True
        self.reason: UInt8[np.ndarray, " n"] = np.where(known, Reason.ABSENT, Reason.NOT_EXTRACTED).astype(np.uint8)
        self.reason[self.counts > 0] = Reason.OBSERVED

    def blocks(self, spec: ModalitySpec, normalise: bool) -> Iterator[np.ndarray]:
        for start in range(0, len(self._rows), CHUNK_ROWS):
            block = np.asarray(self.source.rows[self._rows[start : start + CHUNK_ROWS]])
            if normalise:
                block = block.astype(np.float64)
                norms = np.linalg.norm(block, axis=1, keepdims=True)
                if not norms.all():
                    raise CalmrlError(
                        f"'{self.source.path}': a row of '{spec.name}' is zero throughout and cannot be normalised"
                    )
                block /= norms
            yield block


def _complete(
    name: str, file: str | Path, shared: np.ndarray | None, ids_of: Mapping[str, str | Path], masks: Mapping[str, str | Path]
) -> Source:
    """The source of a modality with the ids and the mask that were given beside it."""
    path, key = split_key(str(file))
    source = read_source(path, name, key)
    ids, observed = source.ids, source.observed
    if name in ids_of:
        ids = read_ids(ids_of[name])
    elif ids is None:
        ids = shared
    if ids is not None and len(ids) != len(source.rows):
        raise CalmrlError(f"'{path}' has {len(source.rows)} rows of '{name}', but {len(ids)} ids are given for them")
    if name in masks:
        mask_path, mask_key = split_key(str(masks[name]))
        observed = _read_mask(mask_path, mask_key)
        if observed.shape != (len(source.rows),):
            raise CalmrlError(
                f"the mask '{mask_path}' is {list(observed.shape)}; '{path}' has {len(source.rows)} rows of '{name}'"
            )
    return Source(source.path, source.rows, ids, observed)


def _read_mask(path: Path, key: str | None) -> Bool[np.ndarray, " rows"]:
    with reading_errors(path):
        if path.suffix not in (".npy", ".npz") or not path.is_file():
            raise CalmrlError(f"the mask '{path}' is not an existing .npy or .npz file")
        loaded: Any = np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            loaded = loaded[key or loaded.files[0]]
    return as_mask(loaded, f"the mask '{path}'")


def _ids_a_source(sources: Mapping[str, Source]) -> dict[str, np.ndarray]:
    unnamed = [name for name, source in sources.items() if source.ids is None]
    if not unnamed:
        return {name: source.ids for name, source in sources.items() if source.ids is not None}
    if len(unnamed) < len(sources):
        named = next(name for name in sources if name not in unnamed)
        raise CalmrlError(
            f"'{sources[unnamed[0]].path}' holds no ids for '{unnamed[0]}', '{sources[named].path}' does for '{named}'",
            hint=f"give them: --ids FILE, or --ids {unnamed[0]}=FILE",
        )
    lengths = {name: len(source.rows) for name, source in sources.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise CalmrlError(
            f"the files have different numbers of rows ({told}) and no ids to match them by", hint="--ids NAME=FILE"
        )
    length = next(iter(lengths.values()))
    numbers = np.array([f"{row:0{len(str(max(length - 1, 0)))}}" for row in range(length)], dtype=np.str_)
    return dict.fromkeys(sources, numbers)


def _universe(
    row_ids: Mapping[str, np.ndarray], items: Mapping[str, list[str]] | None, table: str | Path | None
) -> Shaped[np.ndarray, " n"]:
    """All items, in the order of the table, or of first appearance."""
    for name, ids in row_ids.items():
        if (ids == "").any():
            raise CalmrlError(f"row {int(np.argmax(ids == ''))} of '{name}' has an empty id")
    seen = dict.fromkeys(item for ids in row_ids.values() for item in ids.tolist())
    if items is None:
        return np.array(list(seen), dtype=np.str_)
    listed = set(items["id"])
    if len(listed) < len(items["id"]):
        repeated = next(item for item in items["id"] if items["id"].count(item) > 1)
        raise CalmrlError(f"the table '{table}' lists the item {repeated!r} twice")
    unlisted = [item for item in seen if item not in listed]
    if unlisted:
        raise CalmrlError(
            f"{len(unlisted)} of {len(seen)} items are not in the table '{table}', the first is {unlisted[0]!r}",
            hint="ids must be spelled alike in all files; add the items to the table or import without --table",
        )
    return np.array(items["id"], dtype=np.str_)


def _observed(source: Source) -> Bool[np.ndarray, " rows"]:
    if source.observed is not None:
        return source.observed
    if source.rows.dtype.kind != "f":
        return np.ones(len(source.rows), dtype=bool)
    starts = range(0, len(source.rows), CHUNK_ROWS)
    blocks = [~np.isnan(np.asarray(source.rows[start : start + CHUNK_ROWS])).all(axis=1) for start in starts]
    return np.concatenate(blocks) if blocks else np.empty(0, dtype=bool)


def _kept(reason: np.ndarray, universe: np.ndarray, drop_empty: bool) -> Bool[np.ndarray, " n"]:
    empty = (reason == Reason.ABSENT).all(axis=1)
    if empty.any() and not drop_empty:
        raise CalmrlError(
            f"{int(empty.sum())} of {len(universe)} items have no modality at all, the first is {str(universe[np.argmax(empty)])!r}",
            hint="leave them out with --drop-empty",
        )
    return ~empty


def _about(
    items: Mapping[str, list[str]] | None, universe: np.ndarray, keep: np.ndarray, fractions: Mapping[str, float], seed: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Split, group and labels of the kept items."""
    columns = {name: np.array(values, dtype=np.str_)[keep] for name, values in (items or {}).items() if name != "id"}
    ids = universe[keep]
    group = columns.pop("group", ids)
    group = np.where(group == "", ids, group)
    split = columns.pop("split", None)
    if split is None:
        split = assign_splits(group, fractions, seed)
    elif (torn := split_apart(group, split)) is not None:
        raise CalmrlError(
            f"the table puts the group {torn.group!r} into {torn.one} and into {torn.other} (item {str(ids[torn.item])!r})",
            hint="a group is what must not be split apart; change the splits, or leave out the column 'group'",
        )
    return split, group, columns


def _spec(name: str, source: Source, file: str, encoder: str | None, dtype: str, normalise: bool) -> ModalitySpec:
    kind = source.rows.dtype
    if dtype != "keep":
        stored = dtype
    elif kind.kind == "f":
        stored = kind.name
    else:
        stored = "float32" if normalise or kind.itemsize <= 2 else "float64"
    fingerprint = f"declared:{encoder}" if encoder else f"file:{sha256_of(source.path)}"
    return ModalitySpec(name, encoder or "imported", fingerprint, int(source.rows.shape[1]), stored)
