"""Retry of the failed media of a store: what can be read now is added, everything else stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore, Reason, offsets_of
from feature_extractors.encoder_setup import EncoderFacts
from feature_extractors.protocols import Item, Manifest
from feature_extractors.shards.folder import PartsFolder
from feature_extractors.shards.join import Joined

# The setting of a plan that names the store to complete, by its digest.
COMPLETES = "store to complete"


def completed(old: FeatureStore) -> dict[str, Any]:
    """What the provenance of a completed store says of the one before."""
    return {"completes": {"digest": old.digest, "provenance": old.provenance}}


def clean_up(finished: PartsFolder, store: FeatureStore) -> None:
    """Remove the parts of the retry that made `store`, if it was killed before it could do so itself."""
    before = finished.plan()
    made_from = store.provenance.get("completes")
    if before is not None and isinstance(made_from, dict) and before.settings.get(COMPLETES) == made_from.get("digest", ""):
        finished.remove()


def failed_pairs(store: FeatureStore) -> set[tuple[str, str]]:
    """(id, modality) of everything that failed: whole modalities, and single captions of an item that has others."""
    pairs = {(str(record["id"]), str(record["modality"])) for record in store.failures()}
    for item, column in np.argwhere(store.reason == Reason.FAILED):
        pairs.add((str(store.ids[item]), store.modalities[column]))
    return pairs


def check_encoders(store: FeatureStore, facts: Mapping[str, EncoderFacts]) -> None:
    """CalmrlError naming the difference if the encoders are not those of the store."""
    for spec in store.specs:
        fact = facts[spec.name]
        if (fact.name, fact.fingerprint) != (spec.encoder, spec.fingerprint):
            raise CalmrlError(
                f"the features of '{spec.name}' in '{store.path}' are of encoder '{spec.encoder}' {spec.fingerprint}, and this run would add some of "
                f"'{fact.name}' {fact.fingerprint}",
                hint="use the same weights and settings, or extract everything again",
            )


def only_failed(manifest: Manifest, pairs: set[tuple[str, str]], store: FeatureStore) -> Manifest:
    """The items that have something to try again, with nothing else, in the order of the store."""
    items = {item.id: item for item in manifest.items}
    kept = []
    for name in map(str, store.ids):
        again = [m for m in store.modalities if (name, m) in pairs]
        if not again:
            continue
        if name not in items:
            raise CalmrlError(
                f"item {name!r} failed before and is not in the dataset any more", hint="extract everything again"
            )
        item = items[name]
        kept.append(Item(item.id, item.split, {m: item.media.get(m, ()) for m in again}, item.group, item.labels))
    return replace(manifest, modalities=store.modalities, items=tuple(kept))


class Patched:
    """A store with the modalities of some items replaced by those of newly joined parts."""

    def __init__(self, store: FeatureStore, manifest: Manifest, joined: Joined, pairs: set[tuple[str, str]]) -> None:
        self._store, self._joined = store, joined
        for modality, width in store.dims.items():
            if joined.widths.setdefault(modality, width) != width:
                raise CalmrlError(
                    f"the features of '{modality}' have {width} values in '{store.path}', and {joined.widths[modality]} now",
                    hint="extract everything again",
                )
        place = {item.id: number for number, item in enumerate(manifest.items)}
        self._source = {
            m: np.array([place[str(name)] if (str(name), m) in pairs else -1 for name in store.ids], dtype=np.int64)
            for m in store.modalities
        }
        self.reason = store.reason.copy()
        self.counts: dict[str, np.ndarray] = {}
        for column, modality in enumerate(store.modalities):
            source = self._source[modality]
            again = source >= 0
            self.reason[again, column] = joined.reason[source[again], column]
            self.counts[modality] = np.diff(store.offsets(modality))
            self.counts[modality][again] = joined.counts[modality][source[again]]

    def rows(self, modality: str) -> Iterator[np.ndarray]:
        """Old and new features in the order of the items, runs of old ones at once."""
        old, new = self._store.offsets(modality), offsets_of(self._joined.counts[modality])
        source = self._source[modality]
        fresh = np.concatenate([np.zeros((0, self._store.dims[modality]), np.float32), *self._joined.rows(modality)])
        start = 0
        for item in [*np.flatnonzero(source >= 0), len(source)]:
            for first in range(int(old[start]), int(old[item]), 16384):
                yield self._store.feature_range(modality, first, min(first + 16384, int(old[item])))
            if item < len(source):
                yield fresh[new[source[item]] : new[source[item] + 1]]
            start = item + 1

    def arguments(self, kept: np.ndarray) -> dict[str, Any]:
        """What stays as it was, as arguments of `write_store`, for the items with the indices `kept`."""
        store = self._store
        return {
            "dataset": store.dataset,
            "ids": store.ids[kept],
            "split": store.split[kept],
            "group": store.group[kept],
            "labels": {name: values[kept] for name, values in store.labels.items()},
            "licence": store.licence,
            "attribution": store.attribution,
            "heads": store.heads,
        }
