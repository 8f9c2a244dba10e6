"""A searchable gallery: the items of a store as the model of a run sees them, in an index folder that needs neither run nor store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float

from calmrl_lab.data.missingness import pattern_names
from calmrl_lab.data.table import Table
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.run_items import open_run
from calmrl_lab.model.alignment_model import AlignmentModel
from calmrl_lab.model.similarity import weighted_parts
from calmrl_lab.registry import known, nearest
from calmrl_lab.runs.artifact_folder import file_digest, parquet_bytes
from calmrl_lab.runs.run import Run
from calmrl_lab.runtime.atomic_folders import settled, writing_errors
from calmrl_lab.runtime.threads import limited
from calmrl_lab.scorers._names import family
from calmrl_lab.search.ann_recall import effort_curve
from calmrl_lab.search.faiss_index import Found, Index, Kind, build_index_of_blocks, exact_search, recall_against_exact
from calmrl_lab.search.inner_product_transform import InnerProductTransform
from calmrl_lab.search.item_vectors import GalleryVectors, by_embeddings, by_similarity

if TYPE_CHECKING:
    import pandas as pd

    from calmrl_lab.store import FeatureStore

FORMAT = 3
PROBED = 10
# How often a reader begins again when the folder is replaced under its hands.
_ATTEMPTS = 5


class IndexFolder(Run):
    """The folder of an index: the names of its files. gallery.json, written last, carries the digests of all others."""

    kind: ClassVar[str] = "index"
    GALLERY: ClassVar[str] = "gallery.json"
    INDEX: ClassVar[str] = "index.faiss"
    ITEMS: ClassVar[str] = "items.parquet"
    TRANSFORM: ClassVar[str] = f"{Run.MODEL}/transform.safetensors"
    RECALL: ClassVar[str] = "recall.csv"
    FIGURE: ClassVar[str] = "recall.svg"
    RECORD: ClassVar[str] = GALLERY

    def record_of(self, name: str) -> str:
        return self.GALLERY

    def hint(self, name: str) -> str:
        return "calmrl-lab index writes it anew"

    @cached_property
    def record(self) -> dict[str, Any]:
        """gallery.json as it was when it was first looked at, so that all files are those of one index."""
        if not (self.path / self.GALLERY).is_file():
            raise CalmrlError(
                f"'{self.path}' is no finished index: it has no {self.GALLERY}", hint="calmrl-lab index writes one"
            )
        values = self._mapping(self.GALLERY, self._read(self.GALLERY))
        if values.get("format") != FORMAT:
            raise CalmrlError(
                f"index '{self.path}' is of format {values.get('format')}, this version reads {FORMAT}", hint="build it again"
            )
        return self.read_record(self.GALLERY) or {}

    def digests(self, record: str) -> dict[str, str] | None:
        return self.record["files"] if (self.path / self.GALLERY).is_file() else None

    def identity(self) -> tuple[int, ...] | None:
        """What tells this folder from another one that is put in its place; None where there is none."""
        try:
            found = os.stat(settled(self.path))
        except OSError:
            return None
        # The number of a removed folder may be given to the next one.
        return found.st_dev, found.st_ino, found.st_mtime_ns

    def unchanged(self, since: tuple[int, ...] | None) -> bool:
        """Whether the index is still the one that was looked at first, when `identity` was `since`."""
        if self.identity() != since:
            return False
        try:
            return IndexFolder(self.path).record == self.record
        except CalmrlError:
            return True

    def seal(self, facts: Mapping[str, Any]) -> None:
        """Write gallery.json, with the digests of all that was written before."""
        found = sorted(path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file())
        self.write_record(self.GALLERY, {**facts, "files": {name: file_digest(self.path / name) for name in found}})


@dataclass(frozen=True)
class Gallery:
    """An index in memory: the vectors, the items in the order of the vectors (id, group, pattern, labels), the model that makes query vectors, and
    what changes these where items are compared by another similarity than the cosine."""

    path: Path
    facts: dict[str, Any]
    index: Index
    items: pd.DataFrame
    model: AlignmentModel
    transform: InnerProductTransform | None

    @classmethod
    def open(cls, path: Path | str, gpus: int = 0) -> Gallery:
        """A gallery that `build_gallery` wrote, on the CPU or shared out among `gpus` GPUs.

        Raises CalmrlError if it is none, damaged, or of another version, and for GPUs that FAISS does not see.
        """
        for _ in range(_ATTEMPTS):
            folder = IndexFolder(settled(Path(path)))
            since = folder.identity()
            try:
                found = cls._read(folder, gpus)
                if folder.unchanged(since):
                    return found
            except CalmrlError:
                if folder.unchanged(since):
                    raise
        raise CalmrlError(f"index '{path}' is replaced again and again", hint="search it when nothing writes it")

    @classmethod
    def _read(cls, folder: IndexFolder, gpus: int) -> Gallery:
        facts = folder.record
        index = Index.read(folder.checked(folder.INDEX), facts["kind"])
        items = folder.read_frame(folder.ITEMS)
        if len(items) != len(index):
            raise CalmrlError(f"index '{folder.path}' holds {len(index)} vectors and {len(items)} items", hint="build it again")
        transform = None
        if family(facts["scorer"]) != "cosine":
            transform = InnerProductTransform(folder.read_tensors(folder.TRANSFORM)[0]["scale"])
        model = AlignmentModel.load(folder)
        return cls(folder.path, facts, index.on_gpus(gpus) if gpus else index, items, model, transform)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities a query may have: all those of the model, whatever the items were made of."""
        return tuple(self.facts["encoders"])

    def embed(self, modality: str, features: Float[np.ndarray, "q d_m"]) -> Float[np.ndarray, "q d"]:
        """Query vectors (float32) of cached or freshly encoded features. Raises CalmrlError for an unknown modality or another dimension."""
        known(modality, self.modalities, f"index '{self.path}' has no modality")
        model = self.model
        given = np.asarray(features)
        if given.dtype.kind not in "fiu":
            raise CalmrlError(f"features of '{modality}' are numbers, got an array of {given.dtype}")
        with np.errstate(over="ignore"):  # refused below
            wide = np.atleast_2d(given.astype(np.float32))
        if wide.ndim != 2 or wide.shape[1] != model.dims[modality]:
            raise CalmrlError(
                f"features of '{modality}' have {model.dims[modality]} values, got an array of shape {list(wide.shape)}"
            )
        if not len(wide):
            raise CalmrlError(f"features of '{modality}' hold no row, so there is no query")
        if not np.isfinite(wide).all():
            raise CalmrlError(f"features of '{modality}' hold NaN or infinity")
        with torch.no_grad():
            if self.transform is None:
                return model.project(modality, torch.from_numpy(wide)).numpy()
            vectors = model.vectors(modality, torch.from_numpy(wide))
            asked = model.similarity.query_vectors(self.facts["modalities"], self.facts["patterns"], modality, vectors)
        return self.transform.queries(asked.numpy())

    def search(
        self, vectors: Float[np.ndarray, "q d"], k: int = 10, effort: int | None = None, labels: Mapping[str, str] | None = None
    ) -> pd.DataFrame:
        """The best `k` items of every query: query (position), rank from 1, score, and the columns of `items`.

        Only items with these `labels` are found (name of a label to its value). Raises CalmrlError for a label that the items do not have.
        """
        import pandas as pd

        found = self.nearest(vectors, k, effort, labels)
        query, rank = np.nonzero(found.positions >= 0)
        places = found.positions[query, rank].tolist()
        # Not by rows of `items`: of a million of them, ten take pandas longer than the search.
        about = {
            name: pd.Series([values[place] for place in places], dtype=self.items[name].dtype)
            for name, values in self._columns.items()
        }
        return pd.DataFrame({"query": query, "rank": rank + 1, "score": found.scores[query, rank], **about})

    def records(
        self, vectors: Float[np.ndarray, "q d"], k: int = 10, effort: int | None = None, labels: Mapping[str, str] | None = None
    ) -> list[list[dict[str, Any]]]:
        """`search` as one list of rows per query, which takes little more than FAISS itself."""
        found, columns = self.nearest(vectors, k, effort, labels), self._columns
        return [
            [
                {"rank": rank, "score": score, **{name: values[place] for name, values in columns.items()}}
                for rank, (score, place) in enumerate(zip(scores, places, strict=True), 1)
                if place >= 0
            ]
            for scores, places in zip(found.scores.tolist(), found.positions.tolist(), strict=True)
        ]

    def nearest(
        self, vectors: Float[np.ndarray, "q d"], k: int = 10, effort: int | None = None, labels: Mapping[str, str] | None = None
    ) -> Found:
        """Scores and positions (in `items`) of the best `k` items of every query."""
        if not labels:
            return self.index.search(vectors, min(k, len(self.index)), effort)
        among = np.flatnonzero(np.logical_and.reduce([self._labelled(name, value) for name, value in labels.items()]))
        if len(among) == 0:
            nothing = np.zeros((len(np.atleast_2d(vectors)), 0))
            return Found(nothing.astype(np.float32), nothing.astype(np.int64))
        return self.index.search(vectors, min(k, len(among)), effort, among)

    def holds(self, item: str) -> bool:
        """Whether an item is indexed."""
        return item in self._positions

    def position(self, item: str) -> int:
        """The position of an item in `items`. Raises CalmrlError if it is not indexed."""
        if not self.holds(item):
            raise CalmrlError(f"index '{self.path}' has no item '{item}'{nearest(item, self._columns['id'])}")
        return self._positions[item]

    def _labelled(self, name: str, value: str) -> np.ndarray:
        known_labels = [column.removeprefix("label.") for column in self._columns if column.startswith("label.")]
        known(name, known_labels, f"items of index '{self.path}' have no label")
        found: np.ndarray = self.items[f"label.{name}"].to_numpy() == value
        return found

    @cached_property
    def _columns(self) -> dict[str, list[Any]]:
        return {name: self.items[name].tolist() for name in self.items.columns}

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self._columns["id"])}


@limited()
def build_gallery(
    run: Run | Path | str,
    out: Path | str,
    store: FeatureStore | Path | str | None = None,
    split: str | None = None,
    modalities: Sequence[str] | None = None,
    scorer: str | None = None,
    impute_gaps: bool = False,
    index_type: Kind = "flat",
    options: Mapping[str, int] | None = None,
    gpus: int = 0,
    device: str = "auto",
) -> Gallery:
    """Index the items of a store (default: all of the run's own) as the model of `run` sees them, and write the folder `out`.

    An item is the vector `scorer` makes of what it shows of `modalities` (default: all); the scorer is the run's own: the centroid for
    runs that compare pairs by cosine, likelihood-ratio or sum for the others. `impute_gaps` fills its gaps with the run's imputer first. Items that
    show none of the modalities are left out and counted (`left_out`). For approximate indexes, gallery.json keeps the share of the true ten
    nearest items that a search finds (`recall_against_exact`), measured with up to 1,000 of the store's own rows as queries; recall.csv
    holds it for more and for less effort, on the CPU. `gpus` are used to build the index; the folder is the same.
    Raises CalmrlError for scorers that make no vector of an item, unknown or repeated modalities, `impute_gaps` with a run without imputer or
    a scorer that needs no gap filled, a likelihood ratio for a run without PPCA, and an existing folder that is no index.
    """
    with writing_errors(Path(out)), IndexFolder.replacing(out) as folder:
        _fill(folder, run, store, split, modalities, scorer, impute_gaps, index_type, options, gpus, device)
    return Gallery.open(out)


def _fill(
    folder: IndexFolder,
    run: Run | Path | str,
    store: FeatureStore | Path | str | None,
    split: str | None,
    modalities: Sequence[str] | None,
    scorer: str | None,
    impute_gaps: bool,
    index_type: Kind,
    options: Mapping[str, int] | None,
    gpus: int,
    device: str,
) -> None:
    """Everything that an index folder holds, gallery.json last."""
    run, model, found = open_run(run, store, device)
    scorer = scorer or ("centroid" if model.similarity.name == "cosine" else model.similarity.name)
    by_cosine = family(scorer) == "cosine"
    if impute_gaps and not by_cosine:
        raise CalmrlError(
            f"scorer '{scorer}' adds up what an item shows, so there are no gaps to fill",
            hint="index without --impute-gaps, or with --scorer centroid",
        )
    table, positions = found.table.select(found.positions(split)), found.positions(split)
    with tempfile.TemporaryDirectory(prefix=".vectors-", dir=folder.path) as scratch:
        file = Path(scratch) / "vectors"
        if by_cosine:
            made = by_embeddings(model, table, modalities, scorer, impute_gaps, file)
        else:
            made = by_similarity(model, table, modalities, scorer, file)
        if len(made.rows) == 0:
            raise CalmrlError(
                "a gallery of no items cannot be searched", hint="check --split and the modalities that were named"
            )
        facts = {
            "format": FORMAT,
            "run": run.name,
            "store": {"path": str(found.store.path), "dataset": found.store.dataset, "digest": found.store.digest},
            "split": split or "all",
            "kind": index_type,
            "options": dict(options or {}),
            "scorer": scorer,
            "run_similarity": model.similarity.name,
            "parts": [] if by_cosine else weighted_parts(model.compared_by(family(scorer)).similarity),
            "calibrated": impute_gaps,
            "modalities": list(made.modalities),
            **made.facts,
            "longest": made.longest,
            "encoders": {m: encoder_of(found.store, m) for m in table.modalities},
            "items": len(made.rows),
            "left_out": len(table) - len(made.rows),
            "recall_queries": len(made.probes),
            "recall_against_exact": None,
        }
        facts |= _write_index(folder, made, index_type, options, gpus)
    # What makes query vectors, and nothing else of the run.
    replace(model.compared_by(family(scorer)), alternatives=(), imputer=None, objective=None).save(folder)
    if made.transform is not None:
        folder.write_tensors(folder.TRANSFORM, {"scale": made.transform.scale}, {})
    items = describe_items(found.store, table, positions, made.rows)
    folder.write_bytes(folder.ITEMS, parquet_bytes(items))
    folder.seal(facts)


def describe_items(store: FeatureStore, table: Table, positions: np.ndarray, rows: np.ndarray) -> pd.DataFrame:
    """One row per indexed item: id, group, pattern and labels, of the items at `rows` of `table`, which are at `positions` of the store."""
    import pandas as pd

    patterns = np.asarray(pattern_names(table.mask.cpu().numpy(), table.modalities))
    items = {"id": table.ids[rows], "group": table.group[rows], "pattern": patterns[rows]}
    labels = {f"label.{name}": np.asarray(values)[positions[rows]] for name, values in store.labels.items()}
    return pd.DataFrame({**items, **labels})


def _write_index(
    folder: IndexFolder, made: GalleryVectors, kind: Kind, options: Mapping[str, int] | None, gpus: int
) -> dict[str, Any]:
    """index.faiss, and recall.csv of an approximate index; the facts that come of it."""
    at = made.vectors.at if made.transform is None else lambda rows: made.transform.items(made.vectors.at(rows), made.longest)
    dim = made.probes.shape[1]
    # Built on GPUs or not: what is measured below is what a search will open.
    index = build_index_of_blocks(len(made.rows), dim, made.blocks(), at, kind, options, gpus).on_cpu()
    index.write(folder.path / folder.INDEX)
    if kind == "flat":
        return {"dim": dim}
    exact, seconds = exact_search(made.blocks(), made.probes, PROBED)
    curve = effort_curve(index, exact, seconds, made.probes, PROBED)
    folder.write_bytes(folder.RECALL, curve.to_csv(index=False).encode())
    found = recall_against_exact(index.search(made.probes, PROBED), exact)
    return {"dim": dim, "recall_against_exact": float(found.mean())}


def encoder_of(store: FeatureStore, modality: str) -> dict[str, str]:
    """Name and fingerprint of the encoder that made a modality of `store`."""
    entry = next(entry for entry in store.attributes["modalities"] if entry["name"] == modality)
    return {"name": str(entry["encoder"]), "fingerprint": str(entry["fingerprint"])}
