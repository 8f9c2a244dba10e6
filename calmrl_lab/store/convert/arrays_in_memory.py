"""Arrays in memory to a store, and a store to arrays in memory: NumPy, torch and Hugging Face datasets."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from calmrl_lab._version import __version__
from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known
from calmrl_lab.store.convert.item_ids import frame_index
from calmrl_lab.store.convert.item_tables import known_splits
from calmrl_lab.store.convert.reading.choose import numbered
from calmrl_lab.store.schema import ModalitySpec, check_name, offsets_of
from calmrl_lab.store.splits import assign_splits, first_divided_group
from calmrl_lab.store.writer import write_store

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from calmrl_lab.store.reader import FeatureStore

# Stores of arrays without a path of their own.
FOLDER = Path("stores")


def store_arrays(
    arrays: Mapping[str, Any],
    ids: Sequence[str] | np.ndarray | None = None,
    *,
    mask: np.ndarray | None = None,
    split: Sequence[str] | np.ndarray | None = None,
    group: Sequence[str] | np.ndarray | None = None,
    labels: Mapping[str, Sequence[str] | np.ndarray] | None = None,
    path: str | Path | None = None,
    dataset: str = "arrays",
    licence: str = "",
    overwrite: bool = False,
) -> Path:
    """Write `arrays` as a feature store and return its path; the arguments and errors are those of `FeatureStore.from_arrays`."""
    if not isinstance(arrays, Mapping) or not arrays:
        given = "no arrays were given" if not len(arrays) else f"arrays are a {type(arrays).__name__}, expected a dict"
        raise CalmrlError(given, hint="{modality: array [items, dimension]}, NaN rows where an item lacks it")
    count = _items(arrays)
    index = frame_index(arrays)
    if ids is None:
        names = numbered(count) if index is None else index
    else:
        listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        if nameless := [number for number, name in enumerate(listed) if name is None or name != name]:
            raise CalmrlError(
                f"the id of item {nameless[0]} is {listed[nameless[0]]}", hint="every item needs an id of its own"
            )
        names = np.array(listed)
    if names.shape != (count,):
        raise CalmrlError(f"{names.size} ids are given for {count} items", hint="ids has one entry for every item, in order")
    names = names.astype(np.str_)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != (count, len(arrays)) or mask.dtype != bool:
            raise CalmrlError(
                f"the mask is {mask.dtype} {list(mask.shape)}, expected bool [{count}, {len(arrays)}]",
                hint="True where an item shows the modality, columns in the order of the arrays",
            )
    if labels is not None and not isinstance(labels, Mapping):
        raise CalmrlError(
            f"labels are a {type(labels).__name__}, expected a dict", hint='labels={"category": one text per item}'
        )
    placed = {
        check_name("modality", name): _placed(name, values, names, None if mask is None else mask[:, column])
        for column, (name, values) in enumerate(arrays.items())
    }
    groups = names if group is None else np.asarray(group, dtype=np.str_)
    about: dict[str, Any] = {
        "ids": names,
        "group": groups,
        "split": _splits(split, groups, names),
        "labels": {name: np.asarray(values, dtype=np.str_) for name, values in (labels or {}).items()},
    }
    fingerprints = {name: _digest(rows, offsets) for name, (rows, offsets) in placed.items()}
    if path is None:
        path = FOLDER / f"{dataset}-{_digest_of_items(fingerprints, about, dataset, licence)[:12]}.zarr"
        if path.exists():
            # Its name is the digest of what it holds.
            return path
    return write_store(
        path,
        dataset=dataset,
        modalities=[
            ModalitySpec(name, "arrays", f"array:{fingerprints[name]}", rows.shape[1], rows.dtype.name)
            for name, (rows, _) in placed.items()
        ],
        features={name: rows for name, (rows, _) in placed.items()},
        offsets={name: offsets for name, (_, offsets) in placed.items()},
        licence=licence,
        provenance={
            "made_by": f"calmrl-lab {__version__} FeatureStore.from_arrays",
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
        overwrite=overwrite,
        **about,
    )


def for_numpy(values: Any) -> Any:
    """A tensor on the CPU, of bfloat16, which NumPy lacks, exactly as float32; everything else as it is."""
    if not hasattr(values, "detach"):
        return values
    values = values.detach().cpu()
    return values.float() if str(values.dtype) == "torch.bfloat16" else values


def unmasked(values: Any) -> Any:
    """A masked array of NumPy as a plain one with NaN where it is masked; everything else as it is. `numpy.asarray` would show what the mask hides.

    >>> unmasked(np.ma.array([1.0, 9.0], mask=[False, True])).tolist()
    [1.0, nan]
    """
    if not isinstance(values, np.ma.MaskedArray):
        return values
    masked: np.ma.MaskedArray = values if values.dtype.kind == "f" else np.ma.asarray(values, dtype=np.float64)
    return masked.filled(np.nan)


def first_rows(
    store: FeatureStore, items: Int[np.ndarray, " n"]
) -> tuple[dict[str, Float[np.ndarray, "n d"]], Bool[np.ndarray, "n k"]]:
    """Every item's first row of each modality, in the stored dtype, NaN where it has none; and the mask."""
    arrays = {}
    for column, name in enumerate(store.modalities):
        shown = store.mask[items, column]
        dense = np.full((len(items), store.dims[name]), np.nan, dtype=store.specs[column].dtype)
        dense[shown] = store.rows(name, store.offsets(name)[:-1][items[shown]])
        arrays[name] = dense
    return arrays, store.mask[items].copy()


def samples(store: FeatureStore, items: Sequence[int] | Int[np.ndarray, " n"]) -> list[dict[str, Any]]:
    """Items as `torch.utils.data.DataLoader` collates them: id, features (name -> [d_m] float32, zeros for a gap), mask [k] bool."""
    from calmrl_lab.linalg.floating_range import to_float32

    chosen = np.asarray(items, dtype=np.int64).reshape(-1)
    arrays, mask = first_rows(store, chosen)
    dense = {name: to_float32(np.where(mask[:, [column]], rows, 0), name) for column, (name, rows) in enumerate(arrays.items())}
    return [
        {
            "id": str(store.ids[item]),
            "features": {name: rows[place] for name, rows in dense.items()},
            "mask": mask[place],
        }
        for place, item in enumerate(chosen.tolist())
    ]


def tensors(store: FeatureStore, items: Int[np.ndarray, " n"]) -> tuple[dict[str, Tensor], Tensor]:
    """As `first_rows`, float32 tensors with zeros where an item has no row."""
    import torch

    from calmrl_lab.linalg.floating_range import to_float32

    arrays, mask = first_rows(store, items)
    shown = torch.from_numpy(mask)
    filled = {
        name: torch.from_numpy(to_float32(rows, name)).masked_fill_(~shown[:, [j]], 0.0)
        for j, (name, rows) in enumerate(arrays.items())
    }
    return filled, shown


def as_datasets(store: FeatureStore, items: Int[np.ndarray, " n"]) -> Dataset:
    """A `datasets.Dataset` with columns id, split, group, label/..., and one list of numbers per modality, None where an item lacks it."""
    import pyarrow as pa

    try:
        from datasets import Dataset
    except ImportError:
        raise CalmrlError("the package 'datasets' is not installed", hint="pip install 'calmrl-lab[datasets]'") from None
    columns: dict[str, Any] = {"id": store.ids, "split": store.split, "group": store.group}
    columns |= {f"label/{name}": values for name, values in store.labels.items()}
    table = {name: pa.array(values[items].tolist(), pa.string()) for name, values in columns.items()}
    arrays, mask = first_rows(store, items)
    for column, (name, rows) in enumerate(arrays.items()):
        if name in table:
            raise CalmrlError(f"the modality '{name}' has the name of another column of the data set")
        # A null of a list of fixed length still takes its place among the values.
        flat = pa.array(np.where(mask[:, [column]], rows, 0).astype(rows.dtype, copy=False).reshape(-1))
        table[name] = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1], mask=pa.array(~mask[:, column]))
    return Dataset(pa.table(table))


def chosen_items(store: FeatureStore, split: str | None) -> Int[np.ndarray, " n"]:
    """Positions of the items of a split, or of all. Raises CalmrlError for a split without items."""
    if split is None:
        return np.arange(len(store))
    there = np.unique(store.split).tolist()
    known(split, there, f"store '{store.path}' has no items in split", hint=f"it has: {', '.join(there)}")
    return np.flatnonzero(store.split == split)


def _items(arrays: Mapping[str, Any]) -> int:
    lengths = {}
    for name, values in arrays.items():
        try:
            lengths[name] = len(values)
        except TypeError:
            raise CalmrlError(f"'{name}' is a {type(values).__name__}, expected an array [items, dimension]") from None
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise CalmrlError(
            f"the arrays have different numbers of items ({told})",
            hint="every array has a row for every item, NaN throughout where an item lacks the modality",
        )
    return next(iter(lengths.values()))


def _numbers(name: str, values: Any) -> np.ndarray:
    """`values` as an array of a dtype that stores have."""
    values = for_numpy(values)
    try:
        numbers = np.asarray(unmasked(values))
    except (TypeError, ValueError):
        numbers = np.empty(0, dtype=object)
    if numbers.dtype.kind in "biu":
        return numbers.astype(np.float32 if numbers.dtype.itemsize <= 2 else np.float64)
    if numbers.dtype.kind != "f" or numbers.dtype.itemsize > 8:
        raise CalmrlError(
            f"'{name}' holds no numbers that can be stored (dtype {numbers.dtype}), expected floating-point features"
        )
    return numbers.astype(numbers.dtype.newbyteorder("="), copy=False)


def _placed(
    name: str, values: Any, ids: np.ndarray, observed: Bool[np.ndarray, " n"] | None
) -> tuple[Float[np.ndarray, "r d"], np.ndarray]:
    """The rows that exist, and the offsets that say whose they are."""
    if isinstance(values, list | tuple) or str(getattr(values, "dtype", "")) == "object":
        return _placed_list(name, list(values), ids, observed)
    rows = _numbers(name, values)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise CalmrlError(
            f"'{name}' has shape {list(rows.shape)}, expected [items, dimension]",
            hint="pool tokens or frames first, or give a list with one array [rows, dimension] for every item",
        )
    shown = observed if observed is not None else ~np.isnan(rows).all(axis=1)
    return rows[shown], offsets_of(shown)


def _placed_list(
    name: str, values: Sequence[Any], ids: np.ndarray, observed: Bool[np.ndarray, " n"] | None
) -> tuple[Float[np.ndarray, "r d"], np.ndarray]:
    """The same of one entry per item: None or NaN (as pandas has it) for a gap, [d], or several rows [r, d]."""
    parts: list[np.ndarray] = []
    counts = np.zeros(len(values), dtype=np.int64)
    for item, value in enumerate(values):
        absent = value is None or (isinstance(value, float) and np.isnan(value))
        if observed is not None and observed[item] and absent:
            raise CalmrlError(f"the mask says that item {str(ids[item])!r} shows '{name}', but its entry is {value}")
        if absent or (observed is not None and not observed[item]):
            continue
        numbers = _numbers(f"{name} of item {ids[item]}", value)
        part = np.atleast_2d(numbers)
        if numbers.ndim not in (1, 2) or part.shape[1] == 0 or (parts and part.shape[1] != parts[0].shape[1]):
            wanted = f"[{parts[0].shape[1]}] or [rows, {parts[0].shape[1]}]" if parts else "[d] or [rows, d]"
            raise CalmrlError(f"'{name}' of item {str(ids[item])!r} has shape {list(numbers.shape)}, expected {wanted}")
        part = part if observed is not None else part[~np.isnan(part).all(axis=1)]
        parts.append(part)
        counts[item] = len(part)
    if not parts:
        raise CalmrlError(f"no item has '{name}', so its dimension is not known", hint="leave the modality out")
    return np.concatenate(parts), offsets_of(counts)


def _splits(given: Sequence[str] | np.ndarray | None, groups: np.ndarray, ids: np.ndarray) -> Shaped[np.ndarray, " n"]:
    if len(groups) != len(ids):
        raise CalmrlError(f"group has {len(groups)} entries; expected {len(ids)}, one per item")
    if given is None:
        return assign_splits(groups)
    if isinstance(given, str) or not hasattr(given, "__len__"):
        raise CalmrlError(
            f"split is {given!r}, expected train, validation or test for each of the {len(ids)} items",
            hint="leave split out, and whole groups are drawn, 60/15/25",
        )
    listed = [str(value) for value in given]
    if len(listed) != len(ids):
        raise CalmrlError(f"split has {len(listed)} entries; expected {len(ids)}, one per item")
    split = np.array(known_splits(listed, ids.tolist(), "split"), dtype=np.str_)
    if (divided := first_divided_group(groups, split)) is not None:
        raise CalmrlError(
            f"the group {divided.group!r} is in {divided.one} and in {divided.other} (item {str(ids[divided.item])!r})",
            hint="a group is what must not be split apart; change the splits, or leave out group",
        )
    return split


def _digest(rows: np.ndarray, offsets: np.ndarray) -> str:
    checksum = hashlib.sha256(f"{rows.dtype} {rows.shape}".encode())
    checksum.update(np.ascontiguousarray(rows).data)
    checksum.update(np.ascontiguousarray(offsets).data)
    return checksum.hexdigest()


def _digest_of_items(fingerprints: Mapping[str, str], about: Mapping[str, Any], dataset: str, licence: str) -> str:
    columns = {name: about[name].tolist() for name in ("ids", "split", "group")}
    labels = {name: values.tolist() for name, values in sorted(about["labels"].items())}
    return hashlib.sha256(repr((list(fingerprints.items()), columns, labels, dataset, licence)).encode()).hexdigest()
