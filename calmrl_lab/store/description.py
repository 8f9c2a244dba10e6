"""Description of a store: counts, gaps by reason, patterns, co-observations, sizes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from calmrl_lab.store.schema import SPLITS, Reason

if TYPE_CHECKING:
    from calmrl_lab.store.reader import FeatureStore


def describe(store: FeatureStore) -> dict[str, Any]:
    """Everything `calmrl-lab store info` shows, as plain values ready for JSON.

    `patterns` counts the items of each combination of observed modalities, most frequent first; `co_observed[i][j]` counts
    the items that show both modality i and modality j (a pair never seen together can only be related through a third
    modality).
    """
    observed = store.mask.astype(np.int64)
    return {
        "path": str(store.path),
        "dataset": store.dataset,
        "licence": store.licence,
        "attribution": store.attribution,
        "digest": store.digest,
        "bytes": sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file()),
        "items": len(store),
        "complete_items": int(store.mask.all(axis=1).sum()),
        "empty_items": int((~store.mask.any(axis=1)).sum()),
        "groups": len(np.unique(store.group)),
        "splits": {name: int((store.split == name).sum()) for name in SPLITS},
        "modalities": [_modality(store, column) for column in range(len(store.modalities))],
        "patterns": _patterns(store),
        "co_observed": (observed.T @ observed).tolist(),
        "labels": {name: len(np.unique(values[values != ""])) for name, values in store.labels.items()},
        "heads": {name: list(head.shape) for name, head in store.heads.items()},
        "failures": dict(Counter(str(record.get("code", "unknown")) for record in store.failures()).most_common()),
        "attributes": {k: v for k, v in store.attributes.items() if k not in ("modalities", "checksums")},
    }


def _modality(store: FeatureStore, column: int) -> dict[str, Any]:
    spec = store.specs[column]
    reasons = np.bincount(store.reason[:, column], minlength=len(Reason))
    folder = store.path / "features" / spec.name
    return {
        **spec.to_dict(),
        "rows": int(store.offsets(spec.name)[-1]),
        **{reason.name.lower(): int(reasons[reason]) for reason in Reason},
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }


def _patterns(store: FeatureStore) -> list[dict[str, Any]]:
    patterns, inverse, counts = np.unique(store.mask, axis=0, return_inverse=True, return_counts=True)
    found = []
    for index in np.argsort(-counts, kind="stable").tolist():
        names = [name for name, shown in zip(store.modalities, patterns[index], strict=True) if shown]
        inside = inverse.reshape(-1) == index
        by_split = {name: int((inside & (store.split == name)).sum()) for name in SPLITS}
        found.append({"pattern": "+".join(names), "items": int(counts[index]), **by_split})
    return found
