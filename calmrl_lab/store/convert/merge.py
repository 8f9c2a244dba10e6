"""Several stores to one: more items of the same modalities, or more modalities of the same items, matched by id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.reader import FeatureStore
from calmrl_lab.store.schema import CHUNK_ROWS, RESERVED, ModalitySpec, Reason, offsets_of
from calmrl_lab.store.splits import first_divided_group
from calmrl_lab.store.writer import write_store


def merge(
    paths: Sequence[str | Path], out: str | Path, overwrite: bool = False, provenance: dict[str, Any] | None = None
) -> Path:
    """Merge the stores at `paths` into a new one at `out`, and return that path. The stores themselves stay as they are.

    Stores with the same modalities are concatenated: every modality must have the same encoder, fingerprint, dimension and
    dtype, and no id may be in two of them. Stores that share no modality are joined by id: the result has all items of all
    of them, in the order in which they first appear; what a store does not know of an item is "not extracted". Splits (and
    labels of the same name) must agree wherever two stores speak of one item or group. Raises CalmrlError, naming the first
    difference, if that does not hold.
    """
    if len(paths) < 2:
        raise CalmrlError(f"merging needs at least two stores, got {len(paths)}", hint="name them one after the other")
    stores = [FeatureStore.open(path) for path in paths]
    specs = _common_specs(stores)
    plan = _plan(stores, concatenate=len(specs) == len(stores[0].specs))
    split = _agreed(stores, plan, "split", [store.split for store in stores])
    group = _first(stores, plan, [store.group for store in stores])
    _check_groups(group, split)
    names = sorted({name for store in stores for name in store.labels})
    labels = {name: _agreed(stores, plan, f"label '{name}'", [_label(store, name) for store in stores]) for name in names}
    reason = np.full((len(plan.ids), len(specs)), Reason.NOT_EXTRACTED, dtype=np.uint8)
    offsets, features = {}, {}
    for column, spec in enumerate(specs):
        counts = np.zeros(len(plan.ids), dtype=np.int64)
        for store, origin in zip(stores, plan.origins, strict=True):
            if spec.name in store.dims:
                here = origin >= 0
                counts[here] = np.diff(store.offsets(spec.name))[origin[here]]
                reason[here, column] = store.reason[origin[here], store.column(spec.name)]
        offsets[spec.name] = offsets_of(counts)
        features[spec.name] = _blocks(stores, plan, spec)
    return write_store(
        out,
        dataset=_joined(store.dataset for store in stores),
        modalities=specs,
        ids=plan.ids,
        split=split,
        group=group,
        labels=labels,
        features=features,
        offsets=offsets,
        reason=reason,
        licence=_joined(store.licence for store in stores),
        attribution=_joined(store.attribution for store in stores),
        provenance={**(provenance or {}), "merged": [{"digest": s.digest, "provenance": s.provenance} for s in stores]},
        heads=_heads(stores),
        failures=[record for store in stores for record in store.failures()],
        attributes=_attributes(stores),
        overwrite=overwrite,
    )


@dataclass(frozen=True)
class _Plan:
    """`ids` of the result, and a store each: `origins[s][i]` is the item of store s that becomes item i, -1 if it has none."""

    ids: np.ndarray
    origins: list[Int64[np.ndarray, " n"]]


def _common_specs(stores: list[FeatureStore]) -> list[ModalitySpec]:
    first = stores[0]
    if all(set(store.modalities) == set(first.modalities) for store in stores):
        for store in stores[1:]:
            for spec in first.specs:
                _check_equal(first, spec, store, store.spec(spec.name))
        return list(first.specs)
    specs: dict[str, tuple[FeatureStore, ModalitySpec]] = {}
    for store in stores:
        for spec in store.specs:
            if spec.name in specs:
                raise CalmrlError(
                    f"stores '{specs[spec.name][0].path}' and '{store.path}' share the modality '{spec.name}' but not all modalities",
                    hint="stores to merge have the same modalities (more items) or none in common (more modalities)",
                )
            specs[spec.name] = (store, spec)
    return [spec for _, spec in specs.values()]


def _check_equal(first: FeatureStore, one: ModalitySpec, store: FeatureStore, two: ModalitySpec) -> None:
    for field in ("encoder", "fingerprint", "dimension", "dtype"):
        a, b = getattr(one, field), getattr(two, field)
        if a != b:
            raise CalmrlError(
                f"modality '{one.name}' has {field} {a!r} in '{first.path}' and {b!r} in '{store.path}'; such features do not mix",
                hint="extract one of the stores again with the encoder of the other",
            )


def _plan(stores: list[FeatureStore], concatenate: bool) -> _Plan:
    position: dict[str, int] = {}
    for number, store in enumerate(stores):
        for item in store.ids.tolist():
            if item in position and concatenate:
                other = next(s for s in stores[:number] if (s.ids == item).any())
                raise CalmrlError(
                    f"the item {item!r} is in '{other.path}' and in '{store.path}', which have the same modalities",
                    hint="stores to concatenate must have different items",
                )
            position.setdefault(item, len(position))
    origins = []
    for store in stores:
        origin = np.full(len(position), -1, dtype=np.int64)
        origin[[position[item] for item in store.ids.tolist()]] = np.arange(len(store))
        origins.append(origin)
    return _Plan(np.array(list(position), dtype=np.str_), origins)


def _first(stores: list[FeatureStore], plan: _Plan, values: list[np.ndarray]) -> np.ndarray:
    """For each item the value in the first store that has it."""
    merged = np.full(len(plan.ids), "", dtype=np.result_type(*(v.dtype for v in values)))
    for origin, known in reversed(list(zip(plan.origins, values, strict=True))):
        merged[origin >= 0] = known[origin[origin >= 0]]
    return merged


def _agreed(stores: list[FeatureStore], plan: _Plan, what: str, values: list[np.ndarray]) -> np.ndarray:
    """For each item the value that all stores give it; an empty one gives way to any other."""
    merged = np.full(len(plan.ids), "", dtype=np.result_type(*(v.dtype for v in values)))
    for store, origin, known in zip(stores, plan.origins, values, strict=True):
        mine = np.full(len(plan.ids), "", dtype=merged.dtype)
        mine[origin >= 0] = known[origin[origin >= 0]]
        odd = np.flatnonzero((merged != "") & (mine != "") & (merged != mine))
        if len(odd):
            item = int(odd[0])
            raise CalmrlError(
                f"{what} of item {str(plan.ids[item])!r} is {str(mine[item])!r} in '{store.path}', "
                f"and {str(merged[item])!r} in a store before it",
                hint="make the stores agree (import or extract them from one table of items)",
            )
        merged = np.where(merged == "", mine, merged)
    return merged


def _label(store: FeatureStore, name: str) -> np.ndarray:
    return store.labels.get(name, np.full(len(store), "", dtype="<U1"))


def _check_groups(group: np.ndarray, split: np.ndarray) -> None:
    divided = first_divided_group(group, split)
    if divided is not None:
        raise CalmrlError(
            f"the group {divided.group!r} would be in {divided.one} and in {divided.other}: its items come from several stores",
            hint="items of one group must share a split; rename the groups or change the splits before merging",
        )


def _blocks(stores: list[FeatureStore], plan: _Plan, spec: ModalitySpec) -> Iterator[np.ndarray]:
    """The rows of a modality in the order of the result; each item has them from one store."""
    for start in range(0, len(plan.ids), CHUNK_ROWS):
        pieces = []
        for store, origin in zip(stores, plan.origins, strict=True):
            here = np.flatnonzero(origin[start : start + CHUNK_ROWS] >= 0)
            if spec.name not in store.dims or not len(here):
                continue
            items = origin[start + here]
            offsets = store.offsets(spec.name)
            counts = offsets[items + 1] - offsets[items]
            rows = np.repeat(offsets[items] - offsets_of(counts)[:-1], counts) + np.arange(counts.sum())
            pieces.append((np.repeat(here, counts), store.rows(spec.name, rows)))
        owner = np.concatenate([owner for owner, _ in pieces]) if pieces else np.empty(0, dtype=np.int64)
        if len(owner):
            yield np.concatenate([rows for _, rows in pieces])[np.argsort(owner, kind="stable")]


def _heads(stores: list[FeatureStore]) -> dict[str, np.ndarray]:
    heads: dict[str, np.ndarray] = {}
    for store in stores:
        for name, head in store.heads.items():
            if name in heads and not np.array_equal(heads[name], head):
                raise CalmrlError(
                    f"the head '{name}' of store '{store.path}' differs from that of a store before it",
                    hint="merge stores of the same encoders only",
                )
            heads[name] = head
    return heads


def _attributes(stores: list[FeatureStore]) -> dict[str, Any]:
    """Further attributes that all stores give alike; the others stay readable in the provenance of the parts."""
    first, *others = ({k: v for k, v in store.attributes.items() if k not in RESERVED} for store in stores)
    return {k: v for k, v in first.items() if all(k in other and other[k] == v for other in others)}


def _joined(values: Iterator[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value))
