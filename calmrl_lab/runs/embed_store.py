"""The items of a store as embeddings of a run, written to a file: .npz, .parquet, or a feature store (.zarr)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from calmrl_lab._version import __version__
from calmrl_lab.data.table import BLOCK, load_table
from calmrl_lab.errors import CalmrlError
from calmrl_lab.model.alignment_model import FILE as MODEL
from calmrl_lab.model.alignment_model import AlignmentModel
from calmrl_lab.model.similarity import Cosine
from calmrl_lab.runs.artifact_folder import digest
from calmrl_lab.runs.run import Run
from calmrl_lab.runtime.atomic_folders import new_file
from calmrl_lab.runtime.devices import resolve
from calmrl_lab.runtime.progress import progress
from calmrl_lab.store.convert.arrays_in_memory import chosen_items
from calmrl_lab.store.convert.npz import NpzWriter
from calmrl_lab.store.schema import ModalitySpec, Reason, offsets_of
from calmrl_lab.store.writer import write_store

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore


@dataclass(frozen=True)
class EmbeddedStore:
    """What was written: where, how many items of which modalities and dimension, and the modalities of which a table holds the first row of
    an item only."""

    path: Path
    items: int
    modalities: tuple[str, ...]
    dim: int
    first_rows_only: tuple[str, ...]


def embed_store(
    run: Run | str | Path,
    out: str | Path,
    store: FeatureStore | str | Path | None = None,
    split: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> EmbeddedStore:
    """Write the unit-norm embeddings of a store's items under a finished run to `out`, whose ending says in which form.

    .npz: `ids` [N], `split` [N], `mask` [N, k] (True = observed), and an array [N, d] float32 per modality, NaN rows for gaps. .parquet: one
    row per item with id, split, group, labels and one list of numbers per modality, null for gaps. Of several rows of an item, both hold the
    first. .zarr: a feature store with all rows, which every other command takes.

    store: default that of the run. split: default all items. Items are embedded a block at a time, whatever their number. Raises CalmrlError
    for an unfinished run, another ending, a store that has none of the run's modalities or other dimensions, a split without items, and a
    file that is there, unless `overwrite`.
    """
    from calmrl_lab.store import FeatureStore

    out = Path(out)
    if out.suffix.lower() not in _WRITERS:
        raise CalmrlError(
            f"'{out}' ends in none of {', '.join(_WRITERS)}", hint="the ending says in which form embeddings are written"
        )
    run = run if isinstance(run, Run) else Run.open(run)
    model = run.model().to(resolve(device))
    source = store if isinstance(store, FeatureStore) else FeatureStore.open(run.config.store if store is None else store)
    names = tuple(name for name in model.modalities if name in source.modalities)
    if not names:
        raise CalmrlError(
            f"store '{source.path}' has none of the modalities of run '{run.name}'",
            hint=f"the run has: {', '.join(model.modalities)}",
        )
    items = chosen_items(source, split)
    several = tuple(name for name in names if (np.diff(source.offsets(name))[items] > 1).any())
    total = int(sum(np.diff(source.offsets(name))[items].sum() for name in names))
    with progress("embedding", total, "rows") as task:
        _Embedding(run, model.compared_by(Cosine.name), source, names, items, task.advance).write(out, overwrite)
    table = out.suffix.lower() != ".zarr"
    return EmbeddedStore(out, len(items), names, model.projection.dim, several if table else ())


@dataclass(frozen=True)
class _Embedding:
    """Some items of a store, and the run that embeds them."""

    run: Run
    model: AlignmentModel
    store: FeatureStore
    modalities: tuple[str, ...]
    items: Int[np.ndarray, " n"]
    advance: Callable[[int], None]

    def write(self, out: Path, overwrite: bool) -> None:
        # One item of each modality is looked at first: what does not fit is refused before anything is written.
        for name in self.modalities:
            load_table(self.store, dims={name: self.model.dims[name]}, items=self.items[:1])
        if out.suffix.lower() == ".zarr":
            _write_zarr(self, out, overwrite)
            return
        taken = sorted({"id", "ids", "mask", *self.texts, *self.source} & set(self.modalities))
        if taken:
            raise CalmrlError(
                f"the modality '{taken[0]}' has the name of another array of the file", hint="write a .zarr instead"
            )
        with new_file(out, overwrite) as path:
            _WRITERS[out.suffix.lower()](self, path)

    def rows(self, modality: str, rows: Int[np.ndarray, " r"]) -> Iterator[Float[np.ndarray, "b d"]]:
        """Embeddings of rows of one modality, a block at a time."""
        for start in range(0, len(rows), BLOCK):
            chosen = rows[start : start + BLOCK]
            features = torch.from_numpy(self.store.rows(modality, chosen).astype(np.float32)).to(self.model.device)
            yield self.model.vectors(modality, features).float().cpu().numpy()
            self.advance(len(chosen))

    def dense(self, modality: str) -> Iterator[Float[np.ndarray, "b d"]]:
        """Embeddings of each item's first row of one modality, NaN where it has none, a block of items at a time."""
        shown = self.store.mask[self.items, self.store.column(modality)]
        firsts = self.store.offsets(modality)[:-1][self.items]
        for start in range(0, len(self.items), BLOCK):
            part = slice(start, start + BLOCK)
            block = np.full((len(firsts[part]), self.model.projection.dim), np.nan, dtype=np.float32)
            found = list(self.rows(modality, firsts[part][shown[part]]))
            block[shown[part]] = np.concatenate(found) if found else block[:0]
            yield block

    @property
    def mask(self) -> np.ndarray:
        """[N, k]: what the items show of the modalities that are embedded."""
        return self.store.mask[self.items][:, self.columns]

    @property
    def columns(self) -> list[int]:
        """The columns of the modalities in the arrays of the store."""
        return [self.store.column(name) for name in self.modalities]

    @property
    def texts(self) -> dict[str, np.ndarray]:
        """What is known of the items beside embeddings, by name."""
        labels = {f"label/{name}": values[self.items] for name, values in self.store.labels.items()}
        return {"split": self.store.split[self.items], "group": self.store.group[self.items], **labels}

    @property
    def source(self) -> dict[str, str]:
        """Where the embeddings come from."""
        store = self.store
        found = {"run": self.run.name, "dataset": store.dataset, "licence": store.licence, "attribution": store.attribution}
        return {"made_by": f"calmrl-lab {__version__} embed", "store_digest": store.digest, **found}


def _write_npz(embedding: _Embedding, path: Path) -> None:
    with NpzWriter(path) as file:
        file.array("ids", embedding.store.ids[embedding.items])
        file.array("mask", embedding.mask)
        for name, values in {**embedding.texts, **{key: np.array(text) for key, text in embedding.source.items()}}.items():
            file.array(name, values)
        for name in embedding.modalities:
            shape = (len(embedding.items), embedding.model.projection.dim)
            file.blocks(name, shape, np.dtype(np.float32), embedding.dense(name))


def _write_parquet(embedding: _Embedding, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, dim = {"id": embedding.store.ids[embedding.items], **embedding.texts}, embedding.model.projection.dim
    kind = pa.list_(pa.float32(), dim)
    fields = [*((name, pa.string()) for name in texts), *((name, kind) for name in embedding.modalities)]
    schema = pa.schema(fields, metadata=embedding.source)
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=["id"]) as writer:
        blocks = zip(*(embedding.dense(name) for name in embedding.modalities), strict=True)
        for number, parts in enumerate(blocks):
            about = {
                name: pa.array(values[number * BLOCK : (number + 1) * BLOCK].tolist(), pa.string())
                for name, values in texts.items()
            }
            columns = [*about.values(), *(_lists(part).cast(kind) for part in parts)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _lists(rows: Float[np.ndarray, "n d"]) -> Any:
    """Rows as lists of numbers, null where they are NaN."""
    import pyarrow as pa

    missing = np.isnan(rows).all(axis=1)
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1], mask=pa.array(missing))


def _write_zarr(embedding: _Embedding, out: Path, overwrite: bool) -> None:
    store, items, features, offsets = embedding.store, embedding.items, {}, {}
    for name in embedding.modalities:
        starts = store.offsets(name)
        counts = np.diff(starts)[items]
        offsets[name] = offsets_of(counts)
        rows = np.repeat(starts[:-1][items] - offsets[name][:-1], counts) + np.arange(offsets[name][-1])
        features[name] = embedding.rows(name, rows)
    reason = store.reason[items][:, embedding.columns]
    # What an item shows may be a modality that the run does not have.
    reason[(reason == Reason.ABSENT).all(axis=1)] = Reason.NOT_EXTRACTED
    fingerprint, texts = digest(embedding.run.read_bytes(MODEL)), embedding.texts
    write_store(
        out,
        dataset=store.dataset,
        modalities=[
            ModalitySpec(name, f"calmrl-lab {embedding.run.name}", f"run:{fingerprint}:{name}", embedding.model.projection.dim, "float32")
            for name in embedding.modalities
        ],
        ids=store.ids[items],
        split=texts["split"],
        group=texts["group"],
        labels={name: values[items] for name, values in store.labels.items()},
        reason=reason,
        features=features,
        offsets=offsets,
        licence=store.licence,
        attribution=store.attribution,
        provenance=embedding.source,
        overwrite=overwrite,
    )  # fmt: skip


_WRITERS: dict[str, Callable[[_Embedding, Path], None]] = {
    ".npz": _write_npz,
    ".parquet": _write_parquet,
    ".zarr": lambda *_: None,
}
