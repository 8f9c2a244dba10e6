"""Items added to an index and removed from it, without the run that it was built from."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from calmrl_lab.data.streaming_table import table_for
from calmrl_lab.errors import CalmrlError
from calmrl_lab.runs.artifact_folder import parquet_bytes
from calmrl_lab.runtime.progress import progress
from calmrl_lab.runtime.threads import limited
from calmrl_lab.scorers._names import family
from calmrl_lab.search.index_folder import Gallery, IndexFolder, describe_items, encoder_of
from calmrl_lab.search.item_vectors import by_embeddings, by_similarity, patterns_of

if TYPE_CHECKING:
    import pandas as pd

    from calmrl_lab.store import FeatureStore

# Vectors that are read from an index at once.
_BLOCK = 65_536


@limited()
def add_items(path: Path | str, store: FeatureStore | Path | str, split: str | None = None) -> Gallery:
    """Add the items of `store` (of one `split`, or all) to the index at `path`; they are found as if it had been built with them, by the cells that it has.

    Raises CalmrlError for features of other encoders, an item that is in the index already, an index whose gaps were filled (the imputer is the
    run's), and modalities shown together that the index has no terms for.
    """
    from calmrl_lab.store import FeatureStore

    gallery = Gallery.open(path)
    source = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
    if gallery.facts["calibrated"]:
        raise CalmrlError(f"index '{path}' holds items with their gaps filled by a run", hint="build it anew: calmrl-lab index")
    _refuse_other_encoders(gallery, source)
    positions = np.arange(len(source)) if split is None else np.flatnonzero(np.asarray(source.split) == split)
    if len(positions) == 0:
        raise CalmrlError(f"store '{source.path}' has no items in split '{split}'")
    table = table_for(source, gallery.model.dims, "cpu").select(positions)
    modalities, scorer = gallery.facts["modalities"], gallery.facts["scorer"]
    with tempfile.TemporaryDirectory(prefix=".vectors-", dir=Path(path).absolute().parent) as scratch:
        file = Path(scratch) / "vectors"
        if family(scorer) == "cosine":
            made = by_embeddings(gallery.model, table, modalities, scorer, False, file)
        else:
            known = gallery.facts["patterns"]
            columns = [table.modalities.index(name) for name in modalities]
            if any(pattern not in known for pattern in patterns_of(modalities, table.mask[:, columns])):
                raise CalmrlError(
                    f"the items show other modalities together than those of index '{path}'",
                    hint="build it anew: calmrl-lab index",
                )
            made = by_similarity(gallery.model, table, modalities, scorer, file, known)
        items = describe_items(source, table, positions, made.rows)
        for name in items["id"].tolist():
            if gallery.holds(name):
                raise CalmrlError(
                    f"item '{name}' is in index '{path}' already", hint=f"calmrl-lab index remove --index {path} --item {name}"
                )
        made = replace(made, transform=gallery.transform, longest=gallery.facts["longest"])
        return _replaced(gallery, items, made.blocks, np.arange(len(gallery.items)))


@limited()
def remove_items(path: Path | str, items: Sequence[str]) -> Gallery:
    """Remove items by their ids. Raises CalmrlError for an item that is not in the index, and if none would be left."""
    gallery = Gallery.open(path)
    gone = {gallery.position(item) for item in items}
    kept = np.array([place for place in range(len(gallery.items)) if place not in gone], dtype=np.int64)
    if len(kept) == 0:
        raise CalmrlError(f"index '{path}' would be empty", hint="remove the folder instead")
    return _replaced(gallery, None, lambda: iter(()), kept)


def _replaced(
    gallery: Gallery, new: pd.DataFrame | None, blocks: Callable[[], Iterator[Float[np.ndarray, "b r"]]], kept: np.ndarray
) -> Gallery:
    """The index with the items at `kept`, and the `new` ones, whose vectors are `blocks`; its folder is replaced whole."""
    import pandas as pd

    old = IndexFolder(gallery.path)
    everything = len(kept) == len(gallery.items)
    with IndexFolder.replacing(gallery.path) as folder:
        shutil.copytree(old.path / old.MODEL, folder.path / old.MODEL)
        index = gallery.index
        with progress("changing the index", len(kept), "vectors") as task:
            if not everything:
                vectors = [index.vectors(part) for part in np.array_split(kept, max(1, -(-len(kept) // _BLOCK)))]
                index.faiss_index.reset()
                for part in vectors:
                    index.faiss_index.add(part)
                    task.advance(len(part))
            for block in blocks():
                index.faiss_index.add(np.ascontiguousarray(block, dtype=np.float32))
        index.write(folder.path / folder.INDEX)
        items = gallery.items.iloc[kept]
        items = items if new is None else pd.concat([items, new.reindex(columns=items.columns).fillna("")], ignore_index=True)
        folder.write_bytes(folder.ITEMS, parquet_bytes(items.reset_index(drop=True)))
        # What was measured was another index.
        facts: dict[str, Any] = {key: value for key, value in gallery.facts.items() if key not in ("files", "checksum")}
        folder.seal({**facts, "items": len(items), "recall_against_exact": None})
    return Gallery.open(gallery.path)


def _refuse_other_encoders(gallery: Gallery, store: FeatureStore) -> None:
    for name in gallery.facts["modalities"]:
        if name in store.modalities and encoder_of(store, name) != gallery.facts["encoders"][name]:
            raise CalmrlError(
                f"'{name}' of store '{store.path}' comes from another encoder than that of the indexed items",
                hint="extract the items with the encoders of the indexed store",
            )
