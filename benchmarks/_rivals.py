"""Every imputer on the held-out items of real stores: error against mean imputation, predicted against real error, seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_lab import console
from calmrl_lab.config import override
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.store import FeatureStore

RATES = (0.25, 0.5, 0.75)
# What `calmrl-lab impute` uses unless told otherwise.
DEFAULT = "ppca-auto"
# Beside every imputer as it comes: PPCA and its relatives under one prior, so that what differs is the model.
SAME_PRIOR = ("ppca:ridge=300", "ppca-private:ridge=300", "ppca-student:ridge=300", "ppca-mixture:ridge=30")


def contenders() -> list[str]:
    """Every imputer that fills, and `SAME_PRIOR`."""
    return [name for name in imputers.names() if imputers.get(name).fills] + list(SAME_PRIOR)


def make(asked: str) -> Any:
    """An unfitted imputer from `name` or `name:option=value:...`."""
    name, *options = asked.split(":")
    return imputers.get(name)(**override({}, options))


def compare(stores: Sequence[str], names: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """A row a store, pattern of gaps and imputer; errors are means over `seeds` drawings of the gaps."""
    rows = []
    jobs = [(store, pattern) for store in stores for pattern in (*(f"{rate:.0%}" for rate in RATES), "blocks")]
    with console.progress("imputing", len(jobs) * len(names)) as ticker:
        for store, pattern in jobs:
            data = prepared(store)
            for name in names:
                rows.append({"store": data["name"], "gaps": pattern, "imputer": name} | measure(data, pattern, name, seeds))
                ticker.advance(1, f"{data['name']} {pattern} {name}")
    return rows


def prepared(asked: str) -> dict[str, Any]:
    """Embeddings of a store: rows of unit norm, or with `:standard` behind the path every coordinate of unit variance on the
    training split."""
    path, _, how = asked.partition(":")
    if how not in ("", "standard", "unit"):
        raise CalmrlError(f"'{asked}': rows can be made 'unit' or 'standard'", hint="for example stores/digits.zarr:standard")
    store = FeatureStore.open(path)
    train = store.split == "train"
    embeddings = []
    for j, name in enumerate(store.modalities):
        shown = store.mask[:, j]
        rows = np.full((len(store), store.dims[name]), np.nan, dtype=np.float32)
        rows[shown] = store.features(name)[store.offsets(name)[:-1][shown]]
        if how == "standard":
            spread = rows[train & shown].std(axis=0)
            rows = (rows - rows[train & shown].mean(axis=0)) / np.where(spread > 0, spread, 1)
        else:
            norm = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = rows / np.where(norm > 0, norm, 1)
        embeddings.append(rows)
    return {
        "name": Path(path).stem, "embeddings": embeddings, "mask": store.mask, "train": train, "test": store.split == "test",
        "group": store.group, "modalities": store.modalities,
    }  # fmt: skip


def gaps(mask: np.ndarray, pattern: str, seed: int) -> np.ndarray:
    """`mask` with more hidden: every entry with the same chance, or by blocks of which each shows two neighbouring
    modalities."""
    rng = np.random.default_rng(seed)
    n, k = mask.shape
    if pattern == "blocks":
        block = rng.integers(k + 1, size=n)
        pairs = np.array([np.isin(np.arange(k), (b, (b + 1) % k)) for b in range(k)] + [np.ones(k, dtype=bool)])
        shown = mask & pairs[block]
    else:
        shown = mask & (rng.random(mask.shape) >= float(pattern.rstrip("%")) / 100)
    for i in np.flatnonzero(~shown.any(axis=1) & mask.any(axis=1)):
        shown[i, rng.choice(np.flatnonzero(mask[i]))] = True
    return shown


def measure(data: dict[str, Any], pattern: str, name: str, seeds: int) -> dict[str, Any]:
    """Held-out error a modality over that of the mean, their mean and worst, predicted over real error, seconds."""
    errors, means, predictions, seconds = [], [], [], 0.0
    for seed in range(seeds):
        shown = gaps(data["mask"], pattern, seed)
        train, test = data["train"] & shown.any(axis=1), data["test"] & shown.any(axis=1)
        imputer = make(name)
        imputer.modalities = data["modalities"]
        begun = time.perf_counter()
        groups = {"groups": data["group"][train]} if imputer.takes_groups else {}
        imputer.fit([e[train] for e in data["embeddings"]], shown[train], **groups)
        held_out = [e[test] for e in data["embeddings"]]
        filled = imputer.impute(held_out, shown[test])
        seconds += time.perf_counter() - begun
        predicted = imputer.predicted_error(held_out, shown[test]) if hasattr(imputer, "predicted_error") else None
        for j, rows in enumerate(hidden(data, shown, test)):
            errors.append(np.square(filled[j][rows] - held_out[j][rows]).sum(axis=1).mean(dtype=np.float64))
            known = train & shown[:, j]
            mean = data["embeddings"][j][known].mean(axis=0, dtype=np.float64)
            means.append(np.square(mean - held_out[j][rows]).sum(axis=1).mean(dtype=np.float64))
            predictions.append(np.nan if predicted is None else predicted[rows, j].mean())
    k = len(data["modalities"])
    error, mean, prediction = (np.reshape(values, (seeds, k)).mean(axis=0) for values in (errors, means, predictions))
    relative = error / mean
    return {
        "relative_error": float(relative.mean()),
        "worst_modality": float(relative.max()),
        "by_modality": dict(zip(data["modalities"], np.round(relative, 4).tolist(), strict=True)),
        "predicted_over_real": None if np.isnan(prediction).any() else float((prediction / error).mean()),
        "seconds": seconds / seeds,
    }


def hidden(data: dict[str, Any], shown: np.ndarray, test: np.ndarray) -> Iterator[np.ndarray]:
    """For every modality, which held-out items hide it though they have it."""
    for j in range(shown.shape[1]):
        yield (data["mask"] & ~shown)[test, j]


def worse_than_mean(rows: Sequence[dict[str, Any]], name: str = DEFAULT, slack: float = 0.005) -> list[str]:
    """Where `name` is worse than mean imputation by more than `slack` (relative), which is chance at a few hundred items."""
    return [
        f"{row['store']} {row['gaps']} {modality}: {value:.3f}"
        for row in rows
        if row["imputer"] == name
        for modality, value in row["by_modality"].items()
        if value > 1 + slack
    ]
