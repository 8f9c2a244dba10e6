"""Files of features from elsewhere to a store: items are matched by id across modalities, what is not there is a gap."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt8

from calmrl_lab._version import __version__
from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime import console
from calmrl_lab.store.convert.feature_files import read_source, split_key
from calmrl_lab.store.convert.item_ids import check_meeting, normalised, quoted
from calmrl_lab.store.convert.item_tables import ItemTable, columns_of, known_splits, read_ids, read_table
from calmrl_lab.store.convert.reading.choose import as_mask, numbered
from calmrl_lab.store.convert.reading.reading_errors import reading_errors
from calmrl_lab.store.convert.reading.source import Pool, ReadOptions, Source
from calmrl_lab.store.disk.integrity import sha256_of
from calmrl_lab.store.schema import CHUNK_ROWS, DTYPES, ModalitySpec, Reason, offsets_of
from calmrl_lab.store.splits import FRACTIONS, assign_splits, first_divided_group
from calmrl_lab.store.writer import write_store

# Where a modality has no id column of its own: that of all files.
_ALL = ""


def import_features(
    out: str | Path,
    modalities: Mapping[str, str | Path],
    *,
    ids: str | Path | Sequence[str] | None = None,
    ids_of: Mapping[str, str | Path] | None = None,
    id_columns: Mapping[str, str] | str | None = None,
    by_position: bool = False,
    normalise_ids: bool = False,
    min_shared: float = 0.5,
    pool: str | None = None,
    masks: Mapping[str, str | Path] | None = None,
    zero_is_missing: bool = False,
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
    """Write a store at `out` from one file or folder per modality, and return that path.

    modalities: name -> FILE or FILE:KEY (docs/import.md says which forms are read). An id that a file repeats is an item with several
    rows. ids: the ids of the rows of files that hold none (a list, or a file with one per line); ids_of: the same for single
    modalities. id_columns: the array or column that names the rows, for all files or by modality, where a file leaves that open.
        Without any ids, files of equal length are matched row by row and items are numbered. That is refused while a file holds
        texts that could name its rows, unless by_position says that they do not.
    normalise_ids: spell ids alike (without folders, endings, case, outer spaces, in one Unicode form). min_shared: the share of the ids of
        the smaller of two modalities that must be ids of the other as well.
    pool: what becomes of several rows per item in files of one array per item: their `mean`, or all `rows`.
    masks: name -> file with True where a row is observed; without a mask, rows that are NaN throughout are missing.
    zero_is_missing: rows that are zero throughout are missing too.
    table: a file with a column of ids, optionally 'split' and 'group', all others labels. It then names the items and their
    order;
        otherwise the store has every item that any file has. Without splits, whole groups are drawn by `fractions`,
        `split_seed`.
    encoders: name -> what made the features; else the encoder is 'imported' and the fingerprint that of the file.
    dtype: how to store; 'keep' what the file has (bfloat16 and small integers as float32). normalise: divide rows by their
    norm.

    Gaps: 'absent by nature' where a file has the item but marks it missing, 'not extracted' where it does not have it. An item
    that every file marks as missing is refused, or left out with `drop_empty`. What was taken of each file, what was left out and how many
    ids modalities share is written to standard error. Raises CalmrlError, before anything is
    written, if files are unreadable, lengths differ, ids do not fit, or features are not finite.
    """
    if not modalities:
        raise CalmrlError("nothing to import", hint="name at least one file as --modality NAME=FILE")
    columns = {_ALL: id_columns} if isinstance(id_columns, str) else dict(id_columns or {})
    for what, given in (("ids", ids_of), ("a mask", masks), ("an encoder", encoders), ("an id column", {**columns, _ALL: ""})):
        for name in given or {}:
            if name and name not in modalities:
                raise CalmrlError(
                    f"{what} is given for '{name}', but no such modality is imported", hint="name one that --modality names"
                )
    if dtype != "keep" and dtype not in DTYPES:
        raise CalmrlError(f"dtype '{dtype}' is unknown", hint=f"keep, {', '.join(DTYPES)}")
    if pool not in (None, "mean", "rows"):
        raise CalmrlError(f"pool '{pool}' is unknown", hint="mean takes the mean of an item's rows, rows keeps them all")
    sources = {
        name: _complete(
            name,
            file,
            ids,
            ids_of or {},
            masks or {},
            ReadOptions(None, columns.get(name), columns.get(_ALL), cast(Pool | None, pool)),
        )
        for name, file in modalities.items()
    }
    row_ids = _ids_a_source(sources, by_position)
    in_table = table is not None and _ALL in columns and columns[_ALL] in columns_of(table)
    items = read_table(table, columns[_ALL] if in_table else None) if table is not None else None
    if _ALL in columns and not in_table and all(source.named != columns[_ALL] for source in sources.values()):
        raise CalmrlError(
            f"no file has an array or column '{columns[_ALL]}' to take the ids from",
            hint="--id-column NAME, or --id-column MODALITY=NAME",
        )
    said = [f"{name}: {source.path.name}: {source.told}" for name, source in sources.items()]
    said += items.said if items is not None else []
    if normalise_ids:
        row_ids, items, notes = _spelled_alike(row_ids, items)
        said += notes
    said += check_meeting(row_ids, min_shared)
    universe = _universe(row_ids, items, table)
    placed = {name: _Placed(name, source, row_ids[name], universe, zero_is_missing) for name, source in sources.items()}
    for line in (*said, *(line for part in placed.values() for line in part.said)):
        console.note(line)
    reason = np.stack([part.reason for part in placed.values()], axis=1)
    keep = _kept(reason, universe, drop_empty)
    split, group, labels = _about(
        _splits_of_files(sources, row_ids, items, universe), items, universe, keep, fractions, split_seed
    )
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
    """Where the rows of one source belong: `counts` [N] rows per item, `reason` [N], and the rows themselves in item order."""

    def __init__(self, name: str, source: Source, ids: np.ndarray, universe: np.ndarray, zero_is_missing: bool) -> None:
        order = np.argsort(universe, kind="stable")
        position = order[np.searchsorted(universe, ids, sorter=order)] if len(ids) else np.empty(0, dtype=np.int64)
        self.source = source
        self.ids = ids
        observed, zero = _observed(source)
        zero &= observed
        self.said = []
        if zero.any():
            what = (
                "count as missing"
                if zero_is_missing
                else "are stored as features; if they mark what is missing: --zero-is-missing"
            )
            self.said.append(f"{name}: {int(zero.sum())} of {len(ids)} rows are zero throughout and {what}")
        if zero_is_missing:
            observed &= ~zero
        self._rows = np.flatnonzero(observed)[np.argsort(position[observed], kind="stable")]
        self.counts: Int[np.ndarray, " n"] = np.bincount(position[observed], minlength=len(universe))
        known = np.zeros(len(universe), dtype=bool)
        known[position] = True
        self.reason: UInt8[np.ndarray, " n"] = np.where(known, Reason.ABSENT, Reason.NOT_EXTRACTED).astype(np.uint8)
        self.reason[self.counts > 0] = Reason.OBSERVED

    def blocks(self, spec: ModalitySpec, normalise: bool) -> Iterator[np.ndarray]:
        for start in range(0, len(self._rows), CHUNK_ROWS):
            numbers = self._rows[start : start + CHUNK_ROWS]
            block = np.asarray(self.source.rows[numbers])
            if normalise:
                block = block.astype(np.float64)
                norms = np.linalg.norm(block, axis=1, keepdims=True)
                if not norms.all():
                    row = int(numbers[np.argmin(norms != 0)])
                    raise CalmrlError(
                        f"'{self.source.path}': row {row} of '{spec.name}' (item {str(self.ids[row])!r}) is zero throughout and cannot be normalised",
                        hint="--zero-is-missing leaves such rows out",
                    )
                block /= norms
            yield block


def _complete(
    name: str,
    file: str | Path,
    shared: str | Path | Sequence[str] | None,
    ids_of: Mapping[str, str | Path],
    masks: Mapping[str, str | Path],
    options: ReadOptions,
) -> Source:
    """The source of a modality with the ids and the mask that were given beside it."""
    path, key = split_key(str(file))
    source = read_source(path, name, key, options)
    ids, observed = source.ids, source.observed
    if name in ids_of:
        ids = read_ids(ids_of[name], len(source.rows))
    elif ids is None and shared is not None:
        ids = read_ids(shared, len(source.rows)) if isinstance(shared, (str, Path)) else np.array(list(shared), dtype=np.str_)
    if ids is not None and len(ids) != len(source.rows):
        raise CalmrlError(
            f"'{path}' has {len(source.rows)} rows of '{name}', but {len(ids)} ids are given for them",
            hint="--ids takes one id for every row, in the order of the rows",
        )
    if name in masks:
        mask_path, mask_key = split_key(str(masks[name]))
        observed = _read_mask(mask_path, mask_key)
        if observed.shape != (len(source.rows),):
            raise CalmrlError(
                f"the mask '{mask_path}' is {list(observed.shape)}; '{path}' has {len(source.rows)} rows of '{name}'",
                hint="a mask has one entry for every row of features",
            )
    return replace(source, ids=ids, observed=observed)


def _read_mask(path: Path, key: str | None) -> Bool[np.ndarray, " rows"]:
    with reading_errors(path):
        if path.suffix not in (".npy", ".npz") or not path.is_file():
            raise CalmrlError(
                f"the mask '{path}' is not an existing .npy or .npz file", hint="np.save(path, mask) writes such a file"
            )
        loaded: Any = np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            loaded = loaded[key or loaded.files[0]]
    return as_mask(loaded, f"the mask '{path}'")


def _ids_a_source(sources: Mapping[str, Source], by_position: bool) -> dict[str, np.ndarray]:
    unnamed = [name for name, source in sources.items() if source.ids is None]
    for name in unnamed:
        if sources[name].unused and not by_position:
            raise CalmrlError(
                f"'{sources[name].path}' does not say which of its arrays names the rows of '{name}': {', '.join(sources[name].unused[:8])}",
                hint=f"--id-column {name}={sources[name].unused[0]}, or --ids FILE; if none does, --by-position matches files row by row",
            )
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
    return dict.fromkeys(sources, numbered(next(iter(lengths.values()))))


def _spelled_alike(
    row_ids: Mapping[str, np.ndarray], items: ItemTable | None
) -> tuple[dict[str, np.ndarray], ItemTable | None, list[str]]:
    """The ids of all files, and of the table, in one spelling: that of the table, or of the first file."""
    parts = dict(row_ids)
    if items is not None:
        # A space cannot be the first letter of a modality.
        parts = {" table": np.array(items.ids, dtype=np.str_), **parts}
    alike, notes = normalised(parts)
    if items is not None:
        items = replace(items, ids=alike.pop(" table").tolist())
    return alike, items, notes


def _universe(row_ids: Mapping[str, np.ndarray], items: ItemTable | None, table: str | Path | None) -> Shaped[np.ndarray, " n"]:
    """All items, in the order of the table, or of first appearance."""
    for name, ids in row_ids.items():
        if (ids == "").any():
            raise CalmrlError(f"row {int(np.argmax(ids == ''))} of '{name}' has an empty id", hint="give every row an id")
    seen = dict.fromkeys(item for ids in row_ids.values() for item in ids.tolist())
    if items is None:
        return np.array(list(seen), dtype=np.str_)
    listed = set(items.ids)
    unlisted = [item for item in seen if item not in listed]
    if unlisted:
        raise CalmrlError(
            f"{len(unlisted)} of {len(seen)} items are not in the table '{table}', the first is {quoted(unlisted[0])}; "
            f"the table has {', '.join(map(quoted, items.ids[:2]))}",
            hint="spell ids alike in all files (--normalise-ids does); add the items to the table, or import without --table",
        )
    return np.array(items.ids, dtype=np.str_)


def _observed(source: Source) -> tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
    """Which rows are observed (by the mask, or because they are not NaN throughout), and which are zero throughout."""
    observed, zero = [], []
    for start in range(0, len(source.rows), CHUNK_ROWS):
        block = np.asarray(source.rows[start : start + CHUNK_ROWS])
        zero.append(~block.any(axis=1))
        observed.append(~np.isnan(block).all(axis=1) if block.dtype.kind == "f" else np.ones(len(block), dtype=bool))
    none = np.empty(0, dtype=bool)
    seen = source.observed if source.observed is not None else np.concatenate([none, *observed])
    return seen.copy(), np.concatenate([none, *zero])


def _splits_of_files(
    sources: Mapping[str, Source], row_ids: Mapping[str, np.ndarray], items: ItemTable | None, universe: np.ndarray
) -> np.ndarray | None:
    """The split that the files themselves give every item, [N]; None if they give none, or the table does. CalmrlError if they disagree."""
    if (items is not None and "split" in items.columns) or not any(source.split is not None for source in sources.values()):
        return None
    found: dict[str, str] = {}
    for name, source in sources.items():
        if source.split is None:
            continue
        ids = row_ids[name].tolist()
        for item, split in zip(ids, known_splits(source.split.tolist(), ids, f"'{source.path}'"), strict=True):
            if found.setdefault(item, split) != split:
                raise CalmrlError(
                    f"'{source.path}' puts the item {item!r} into {split}, and another row or file into {found[item]}",
                    hint="an item has one split; give the splits in a table (--table) instead",
                )
    without = [item for item in universe.tolist() if item not in found]
    if without:
        console.note(
            f"splits of the files are not used: {len(without)} items have none, the first is {without[0]!r}; give them with --table"
        )
        return None
    return np.array([found[item] for item in universe.tolist()], dtype=np.str_)


def _kept(reason: np.ndarray, universe: np.ndarray, drop_empty: bool) -> Bool[np.ndarray, " n"]:
    empty = (reason == Reason.ABSENT).all(axis=1)
    if empty.any() and not drop_empty:
        raise CalmrlError(
            f"{int(empty.sum())} of {len(universe)} items have no modality at all, the first is {str(universe[np.argmax(empty)])!r}",
            hint="leave them out with --drop-empty",
        )
    return ~empty


def _about(
    given: np.ndarray | None,
    items: ItemTable | None,
    universe: np.ndarray,
    keep: np.ndarray,
    fractions: Mapping[str, float],
    seed: int,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Split, group and labels of the kept items. `given`: the splits [N] that the files bring, or None."""
    columns = {name: np.array(values, dtype=np.str_)[keep] for name, values in (items.columns if items else {}).items()}
    ids = universe[keep]
    group = columns.pop("group", ids)
    group = np.where(group == "", ids, group)
    split = columns.pop("split", None if given is None else given[keep])
    if split is None:
        split = assign_splits(group, fractions, seed)
    elif (divided := first_divided_group(group, split)) is not None:
        raise CalmrlError(
            f"the table puts the group {divided.group!r} into {divided.one} and into {divided.other} (item {str(ids[divided.item])!r})",
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
    fingerprint = f"declared:{encoder}" if encoder else f"file:{_digest(source.path)}"
    return ModalitySpec(name, encoder or "imported", fingerprint, int(source.rows.shape[1]), stored)


def _digest(path: Path) -> str:
    """sha256 of a file, or of the names and digests of all files of a folder."""
    if path.is_file():
        return sha256_of(path)
    lines = [f"{file.relative_to(path).as_posix()} {sha256_of(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
