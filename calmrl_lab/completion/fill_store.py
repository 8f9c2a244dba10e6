"""A store with gaps to a store without: every gap filled from what the item shows, marked as such, with the error to expect."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from calmrl_lab._version import __version__
from calmrl_lab.completion.fitted_store import predicted_errors, predicts, prepare
from calmrl_lab.data.missingness import pattern_names
from calmrl_lab.imputers.base import Imputer
from calmrl_lab.runtime.atomic_folders import may_take
from calmrl_lab.store import FeatureStore, Reason, offsets_of, write_store
from calmrl_lab.store.disk.files import looks_like_store

if TYPE_CHECKING:
    from calmrl_lab.completion.held_out_check import Check

# Labels of the new store, followed by the modality.
MARK, ERROR = "imputed", "relative error of"


@dataclass(frozen=True)
class Completion:
    """What `complete_store` did: a row a modality with gaps and a row a pattern, errors relative to mean imputation (1.0); and
    what a check on held-out items found, if one was asked for."""

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


def complete_store(
    store: FeatureStore | str | Path,
    out: str | Path,
    imputer: str | Imputer = "ppca-auto",
    options: Mapping[str, Any] | None = None,
    modalities: Sequence[str] | None = None,
    fit_on: str = "train",
    standardise: bool = False,
    overwrite: bool = False,
    check: bool = False,
) -> Completion:
    """Write to `out` the store with the gaps of `modalities` (default: all) filled by `imputer`, fitted on the split `fit_on`.

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
    ready = prepare(store, imputer, options or {}, modalities, fit_on, standardise)
    store, names, mask, chosen = ready.store, ready.names, ready.mask, ready.imputer
    checked = None
    if check:
        from calmrl_lab.completion.held_out_check import check_on_held_out

        checked = check_on_held_out(ready)
    fill = ~mask & mask.any(axis=1, keepdims=True)
    completed = [np.asarray(values) for values in chosen.impute(ready.rows, mask)]
    completed = [values if scale is None else values * scale for values, scale in zip(completed, ready.scales, strict=True)]
    relative = predicted_errors(chosen, ready.rows, mask) / ready.variances if predicts(chosen) else None
    labels = {**store.labels}
    for j, name in enumerate(names):
        if fill[:, j].any():
            labels[f"{MARK} {name}"] = np.where(fill[:, j], "yes", "no")
            if relative is not None:
                labels[f"{ERROR} {name}"] = np.array(
                    [f"{e:.4f}" if f else "" for e, f in zip(relative[:, j], fill[:, j], strict=True)]
                )
    path = _write(store, out, names, completed, fill, labels, chosen, fit_on, standardise, overwrite)
    return replace(_summary(path, chosen, names, mask, fill, relative), check=checked)


def _write(
    store: FeatureStore,
    out: str | Path,
    names: tuple[str, ...],
    completed: list[np.ndarray],
    fill: Bool[np.ndarray, "n k"],
    labels: Mapping[str, Any],
    imputer: Imputer,
    fit_on: str,
    standardise: bool,
    overwrite: bool,
) -> Path:
    features, offsets, reason = {}, {}, store.reason.copy()
    for column, spec in enumerate(store.specs):
        before, after = store.offsets(spec.name), store.features(spec.name)
        if spec.name not in names or not fill[:, names.index(spec.name)].any():
            features[spec.name], offsets[spec.name] = after, before
            continue
        j = names.index(spec.name)
        counts = np.diff(before)
        offsets[spec.name] = offsets_of(np.where(fill[:, j], 1, counts))
        merged = np.empty((int(offsets[spec.name][-1]), spec.dimension), dtype=after.dtype)
        is_new = np.repeat(fill[:, j], np.where(fill[:, j], 1, counts))
        merged[~is_new] = after
        # Real rows fit into the store's dtype; a mean beyond them that does not is put where the dtype ends.
        limits = np.finfo(after.dtype)
        merged[is_new] = np.clip(completed[j][fill[:, j]], limits.min, limits.max)
        features[spec.name] = merged
        reason[fill[:, j], column] = Reason.OBSERVED
    facts = {
        "imputer": imputer.name,
        "options": imputer.options(),
        "fit_on": fit_on,
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
    shown = np.asarray(pattern_names(mask, names))
    patterns = []
    for pattern in sorted(set(shown[fill.any(axis=1)].tolist())):
        for j, name in enumerate(names):
            rows = (shown == pattern) & fill[:, j]
            if rows.any():
                patterns.append(
                    {"observed": pattern, "filled": name, "items": int(rows.sum()), "relative_error": error(j, rows)}
                )
    return Completion(path, imputer.name, modalities, patterns, int((~mask.any(axis=1)).sum()))
