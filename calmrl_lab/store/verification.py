"""Verification of a store: every damaged place, by the checksums of its files and by its values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.disk.arrays import read_json
from calmrl_lab.store.disk.files import looks_like_store
from calmrl_lab.store.disk.integrity import Checksums, size_of
from calmrl_lab.store.reader import FeatureStore
from calmrl_lab.store.schema import CHUNK_ROWS, PROVENANCE_FILE, SPLITS


@dataclass(frozen=True)
class Damage:
    """One damaged place: the file (or array) and what is wrong with it."""

    place: str
    problem: str


def verify(path: str | Path, advance: Callable[[int], None] = lambda files: None) -> list[Damage]:
    """All damage of the store at `path`, in the order of file names; an empty list if it is whole.

    Reads every byte. `advance(n)` is called as files are done. Raises CalmrlError if `path` is not a store at all.
    """
    root = Path(path)
    try:
        is_store = root.is_dir() and looks_like_store(root) and any(root.iterdir())
    except OSError as error:
        raise CalmrlError(f"'{root}' cannot be read: {error.strerror}") from None
    if not is_store:
        FeatureStore.open(root)
        raise CalmrlError(f"'{root}' is not a feature store")
    damage = _damaged_files(root, advance)
    if damage:
        return damage
    try:
        store = FeatureStore.open(root)
    except CalmrlError as error:
        # The path of the store may look like the name of an array.
        return [Damage(_place(error.message.replace(str(root), "")), error.message)]
    return _damaged_values(store)


def _damaged_files(root: Path, advance: Callable[[int], None]) -> list[Damage]:
    damage = []
    expected = True
    try:
        metadata: Any = read_json(root, "zarr.json")
        expected = isinstance(metadata, dict) and "checksums" in (metadata.get("attributes") or {})
    except CalmrlError as error:
        damage.append(Damage("zarr.json", error.message))
    try:
        checksums = Checksums(root, expected)
    except CalmrlError as error:
        return [*damage, Damage("digest.json", error.message)]
    for name, entry in checksums.files.items():
        try:
            size = size_of(root / name)
            if size is None:
                damage.append(Damage(name, "missing"))
            elif size != entry["size"]:
                damage.append(Damage(name, f"{size} bytes; expected {entry['size']}"))
            elif not checksums.matches(name):
                damage.append(Damage(name, "the checksum differs: bytes were changed"))
        except CalmrlError as error:
            damage.append(Damage(name, error.message))
        advance(1)
    if checksums.files:
        damage += [
            Damage(name, "not listed in digest.json: added after the store was written") for name in checksums.unlisted()
        ]
    # zarr.json is both unreadable and of another checksum when it is cut off: one line is enough.
    return list({place.place: place for place in damage}.values())


def _damaged_values(store: FeatureStore) -> list[Damage]:
    """What checksums cannot see: values that were wrong when they were written (by another tool)."""
    damage = []
    try:
        unique = len(np.unique(store.ids))
        if unique < len(store) or (store.ids == "").any():
            damage.append(Damage("ids", f"{len(store) - unique} repeated or empty ids"))
        if not np.isin(store.split, SPLITS).all():
            damage.append(Damage("split", f"values other than {', '.join(SPLITS)}"))
        if (store.group == "").any():
            damage.append(Damage("group", "empty values"))
        for name in store.labels:
            store.labels[name]
        for name, head in store.heads.items():
            if not np.isfinite(head).all():
                damage.append(Damage(f"heads/{name}", "NaN or infinite values"))
        for modality in store.modalities:
            total = int(store.offsets(modality)[-1])
            for start in range(0, total, CHUNK_ROWS):
                rows = store.feature_range(modality, start, min(start + CHUNK_ROWS, total))
                bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
                if len(bad):
                    item = int(np.searchsorted(store.offsets(modality), start + bad[0], side="right") - 1)
                    damage.append(
                        Damage(f"features/{modality}", f"NaN or infinite values, first at item {str(store.ids[item])!r}")
                    )
                    break
        store.failures()
    except (CalmrlError, ValueError) as error:
        damage.append(Damage("values", str(error)))
    try:
        store.provenance  # noqa: B018 - the one file without a checksum
    except CalmrlError as error:
        damage.append(Damage(PROVENANCE_FILE, error.message))
    return damage


def _place(message: str) -> str:
    words = [word.strip(":,'") for word in message.split()]
    return next(
        (word for word in words if word.startswith(("features/", "offsets/", "mask", "reason", "label/", "heads/"))), "store"
    )


def count_files(path: str | Path) -> int:
    """How many files `verify` will read: the total for a progress display (0 if that cannot be said)."""
    try:
        return len(Checksums(Path(path), expected=False).files)
    except CalmrlError:
        return 0
