"""Completion of a store: every gap imputed from the observed modalities of its item, marked as imputed, with its expected error."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from calmrl_lab._version import __version__
from calmrl_lab.completion.fitted_store import Prepared, predicted_errors, predicts, prepare
from calmrl_lab.completion.item_rows import BLOCK
from calmrl_lab.data.patterns import Patterns
from calmrl_lab.imputers.base import Imputer
from calmrl_lab.runtime.atomic_folders import may_take, scratch_folder
from calmrl_lab.runtime.progress import progress
from calmrl_lab.runtime.threads import limited
from calmrl_lab.store import FeatureStore, ModalitySpec, Reason, offsets_of, write_store
from calmrl_lab.store.disk.files import looks_like_store

if TYPE_CHECKING:
    from calmrl_lab.completion.held_out_check import Check

# Labels of the new store, followed by the modality.
MARK, ERROR = "imputed", "relative error of"


@dataclass(frozen=True)
class Completion:
    """What `complete_store` did: a row per modality with gaps and a row per pattern, errors relative to mean imputation (1.0); and
    what a check on held-out items found, if there was one."""

    path: Path
    imputer: str
    modalities: list[dict[str, Any]]
    patterns: list[dict[str, Any]]
    empty_items: int
    check: Check | None = None

    def payload(self) -> dict[str, Any]:
        """As a JSON document."""
        return {
            "path": str(self.path),
            "imputer": self.imputer,
            "modalities": self.modalities,
            "patterns": self.patterns,
            "items_left_empty": self.empty_items,
            "check": self.check and self.check.payload(),
        }


@limited()
def complete_store(
    store: FeatureStore | str | Path,
    out: str | Path,
    imputer: str | Imputer = "ppca-auto",
    options: Mapping[str, Any] | None = None,
    modalities: Sequence[str] | None = None,
    fit_split: str = "train",
    standardise: bool = False,
    overwrite: bool = False,
    check: bool = False,
) -> Completion:
    """Write to `out` the store with the gaps of `modalities` (default: all) filled by `imputer`, fitted on the split `fit_split`.

    Features enter as they are stored (the first row where an item has several), or with `standardise` every coordinate scaled
    to unit variance first; the filled ones are returned to the store's units and dtype. Observed rows are copied. Items that
    show none of the modalities stay empty: there is nothing to go on.

    The new store has, for every modality with gaps, the labels "imputed <modality>" (yes or no) and, if the imputer predicts
    its error, "relative error of <modality>" (expected squared error over the modality's variance, so 1 is no better than the
    mean; empty where observed). `check` compares these expectations with the truth on items of the other splits. Raises
    CalmrlError for an unknown imputer or modality, one that fills nothing or never saw what it is to fill, and an `out` that
    exists.
    """
    may_take(Path(os.path.abspath(out)), overwrite, looks_like_store)
    ready = prepare(store, imputer, options or {}, modalities, fit_split, standardise)
    store, names, mask, chosen = ready.store, ready.names, ready.mask, ready.imputer
    checked = None
    if check:
        from calmrl_lab.completion.held_out_check import check_on_held_out

        checked = check_on_held_out(ready)
    fill = ~mask & mask.any(axis=1, keepdims=True)
    relative = np.zeros(mask.shape) if predicts(chosen) else None
    with scratch_folder(Path(out)) as scratch:
        filled = [_FilledRows(store.spec(name), fill[:, j], scratch / f"{j}") for j, name in enumerate(names)]
        _fill(ready, fill, filled, relative)
        labels = {**store.labels, **_labels(names, fill, relative)}
        path = _write(store, out, dict(zip(names, filled, strict=True)), labels, chosen, fit_split, standardise, overwrite)
    return replace(_summary(path, chosen, names, mask, fill, relative), check=checked)


class _FilledRows:
    """The imputed rows of one modality for the items under `chosen` [N], in their order and in the dtype of the store, kept in a file."""

    def __init__(self, spec: ModalitySpec, chosen: Bool[np.ndarray, " n"], path: Path) -> None:
        self.spec = spec
        self.chosen = chosen
        self._path = path
        self._written = 0
        self._ends = np.concatenate([[0], np.cumsum(chosen)])

    def append(self, rows: Float[np.ndarray, "b d"]) -> None:
        """The rows of the next items."""
        limits = np.finfo(self.spec.dtype)
        with self._path.open("ab") as file:
            # A mean of real rows that the dtype of the store cannot hold is put where that dtype ends.
            file.write(np.ascontiguousarray(np.clip(rows, limits.min, limits.max), dtype=self.spec.dtype).data)
        self._written += len(rows)

    def merged(self, store: FeatureStore) -> Iterator[np.ndarray]:
        """All rows of the modality with the imputed ones in their places, a block of items at a time."""
        name, shape = self.spec.name, (self._written, self.spec.dimension)
        before = store.offsets(name)
        rows = np.memmap(self._path, dtype=self.spec.dtype, mode="r", shape=shape) if self._written else np.zeros(shape)
        for start in range(0, len(store), BLOCK):
            stop = min(start + BLOCK, len(store))
            chosen = self.chosen[start:stop]
            counts = np.where(chosen, 1, np.diff(before[start : stop + 1]))
            is_new = np.repeat(chosen, counts)
            merged = np.empty((len(is_new), self.spec.dimension), dtype=self.spec.dtype)
            merged[~is_new] = store.feature_range(name, int(before[start]), int(before[stop]))
            merged[is_new] = rows[self._ends[start] : self._ends[stop]]
            yield merged


def _fill(ready: Prepared, fill: Bool[np.ndarray, "n k"], filled: Sequence[_FilledRows], relative: np.ndarray | None) -> None:
    """Impute block by block into `filled`, and the expected errors, over the variance of the modality, into `relative` [N, k]."""
    rows, mask = ready.rows, ready.mask
    gaps = np.flatnonzero(fill.any(axis=1))
    with progress(f"filling with {ready.imputer.name}", len(gaps)) as task:
        for items in rows.blocks(gaps):
            block = rows.of(items)
            values = ready.imputer.impute(block, mask[items])
            for j, (part, scale) in enumerate(zip(values, rows.scales, strict=True)):
                new = np.asarray(part)[fill[items, j]]
                filled[j].append(new if scale is None else new * scale)
            if relative is not None:
                relative[items] = predicted_errors(ready.imputer, block, mask[items]) / ready.variances
            task.advance(len(items))


def _labels(names: Sequence[str], fill: Bool[np.ndarray, "n k"], relative: np.ndarray | None) -> dict[str, np.ndarray]:
    """Of every modality with gaps: which items were filled, and the error to expect of them."""
    labels = {}
    for j, name in enumerate(names):
        if fill[:, j].any():
            labels[f"{MARK} {name}"] = np.where(fill[:, j], "yes", "no")
            if relative is not None:
                written = np.char.mod("%.4f", relative[:, j])
                labels[f"{ERROR} {name}"] = np.where(fill[:, j], written, "")
    return labels


def _write(
    store: FeatureStore,
    out: str | Path,
    filled: Mapping[str, _FilledRows],
    labels: Mapping[str, Any],
    imputer: Imputer,
    fit_split: str,
    standardise: bool,
    overwrite: bool,
) -> Path:
    features: dict[str, Iterator[np.ndarray]] = {}
    offsets, reason = {}, store.reason.copy()
    for column, spec in enumerate(store.specs):
        before = store.offsets(spec.name)
        new = filled.get(spec.name) or _FilledRows(spec, np.zeros(len(store), dtype=bool), Path())
        features[spec.name] = new.merged(store)
        offsets[spec.name] = offsets_of(np.where(new.chosen, 1, np.diff(before)))
        reason[new.chosen, column] = Reason.OBSERVED
    facts = {
        "imputer": imputer.name,
        "options": imputer.options(),
        "fit_on": fit_split,
        "standardised": standardise,
        "of": store.digest,
    }
    kept = {k: v for k, v in store.attributes.items() if k not in _FORMAT_ATTRIBUTES}
    return write_store(
        out,
        dataset=store.dataset,
        modalities=store.specs,
        ids=store.ids,
        split=store.split,
        group=store.group,
        labels=labels,
        features=features,
        offsets=offsets,
        reason=reason,
        licence=store.licence,
        attribution=store.attribution,
        heads=store.heads,
        failures=store.failures(),
        provenance={"made_by": f"calmrl-lab {__version__} impute", "from": str(store.path), "before": store.provenance},
        attributes={**kept, "imputation": facts},
        overwrite=overwrite,
    )


_FORMAT_ATTRIBUTES = ("format", "version", "dataset", "licence", "attribution", "modalities", "checksums")


def _summary(
    path: Path,
    imputer: Imputer,
    names: tuple[str, ...],
    mask: Bool[np.ndarray, "n k"],
    fill: Bool[np.ndarray, "n k"],
    relative: np.ndarray | None,
) -> Completion:
    def error(j: int, rows: np.ndarray) -> float | None:
        return None if relative is None else float(relative[rows, j].mean())

    modalities = [
        {
            "modality": name,
            "observed": int(mask[:, j].sum()),
            "filled": int(fill[:, j].sum()),
            "relative_error": error(j, fill[:, j]),
        }
        for j, name in enumerate(names)
        if fill[:, j].any()
    ]
    shown = Patterns.of(mask)
    which = shown.which.numpy()
    patterns = []
    for pattern, index in sorted(zip(shown.names(names), range(len(shown)), strict=True)):
        for j, name in enumerate(names):
            rows = (which == index) & fill[:, j]
            if rows.any():
                patterns.append(
                    {"observed": pattern, "filled": name, "items": int(rows.sum()), "relative_error": error(j, rows)}
                )
    return Completion(path, imputer.name, modalities, patterns, int((~mask.any(axis=1)).sum()))
