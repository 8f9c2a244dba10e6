"""A searchable gallery: the items of a store as the model of a run sees them, in an index folder that needs neither run nor store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from calmrl_lab.data.missingness import pattern_names
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.run_items import open_run
from calmrl_lab.model.alignment_model import AlignmentModel
from calmrl_lab.model.similarity import weights_of
from calmrl_lab.registry import known
from calmrl_lab.runs.run import Run
from calmrl_lab.runtime.atomic_files import is_temporary, write_atomically
from calmrl_lab.scorers._names import family
from calmrl_lab.search.faiss_index import Index, Kind, build_index, recall_against_exact
from calmrl_lab.search.inner_product_transform import InnerProductTransform
from calmrl_lab.search.item_vectors import by_embeddings, by_similarity

if TYPE_CHECKING:
    import pandas as pd

    from calmrl_lab.store import FeatureStore

FORMAT = 2
PROBED = 10
# What an index folder may hold: one with nothing else is an index, also if its writer was killed before gallery.json.
_TRANSFORM = "transform.safetensors"
_FILES = frozenset({"gallery.json", "index.faiss", "items.parquet", "model", _TRANSFORM, "recall.csv", "recall.svg"})


@dataclass(frozen=True)
class Gallery:
    """An index folder: index.faiss, items.parquet (id, group, pattern, labels; the order of the index), gallery.json, the model that makes query
    vectors, and transform.safetensors where items are compared by another similarity than the cosine."""

    path: Path
    facts: dict[str, Any]
    index: Index
    items: pd.DataFrame

    @classmethod
    def open(cls, path: Path | str, gpus: int = 0) -> Gallery:
        """A gallery that `build_gallery` wrote, on the CPU or shared out among `gpus` GPUs.

        Raises CalmrlError if it is none, damaged, or of another version, and for GPUs that FAISS does not see.
        """
        path = Path(path)
        try:
            facts = json.loads((path / "gallery.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CalmrlError(
                f"'{path}' is no finished index: it has no gallery.json", hint="calmrl-lab index writes one"
            ) from None
        except (OSError, ValueError) as error:
            raise CalmrlError(
                f"'{path / 'gallery.json'}' is damaged: {error}", hint="calmrl-lab index writes it anew"
            ) from None
        if facts.get("format") != FORMAT:
            raise CalmrlError(
                f"index '{path}' is of format {facts.get('format')}, this version reads {FORMAT}", hint="build it again"
            )
        index = Index.load(path / "index.faiss", facts["kind"])
        items = Run(path).read_frame("items.parquet")
        if len(items) != len(index):
            raise CalmrlError(f"index '{path}' holds {len(index)} vectors and {len(items)} items", hint="build it again")
        return cls(path, facts, index.on_gpus(gpus) if gpus else index, items)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities a query may have: all those of the model, whatever the items were made of."""
        return tuple(self.facts["encoders"])

    def embed(self, modality: str, features: Float[np.ndarray, "q d_m"]) -> Float[np.ndarray, "q d"]:
        """Query vectors (float32) of cached or freshly encoded features. Raises CalmrlError for an unknown modality or another dimension."""
        known(modality, self.modalities, f"index '{self.path}' has no modality")
        model = AlignmentModel.load(Run(self.path))
        given = np.asarray(features)
        if given.dtype.kind not in "fiu":
            raise CalmrlError(f"features of '{modality}' are numbers, got an array of {given.dtype}")
        wide = np.atleast_2d(given.astype(np.float32))
        if wide.ndim != 2 or wide.shape[1] != model.dims[modality]:
            raise CalmrlError(
                f"features of '{modality}' have {model.dims[modality]} values, got an array of shape {list(wide.shape)}"
            )
        if not np.isfinite(wide).all():
            raise CalmrlError(f"features of '{modality}' hold NaN or infinity")
        with torch.no_grad():
            if family(self.facts["scorer"]) == "cosine":
                return model.project(modality, torch.from_numpy(wide)).numpy()
            vectors = model.vectors(modality, torch.from_numpy(wide))
            asked = model.similarity.query_vectors(self.facts["modalities"], self.facts["patterns"], modality, vectors)
        return InnerProductTransform(Run(self.path).read_tensors(_TRANSFORM)[0]["scale"]).queries(asked.numpy())

    def search(self, vectors: Float[np.ndarray, "q d"], k: int = 10, effort: int | None = None) -> pd.DataFrame:
        """The best `k` items of every query: query (position), rank from 1, score, and the columns of `items`."""
        import pandas as pd

        found = self.index.search(vectors, min(k, len(self.index)), effort)
        query, rank = np.nonzero(found.positions >= 0)
        about = self.items.iloc[found.positions[query, rank]].reset_index(drop=True)
        return pd.concat([pd.DataFrame({"query": query, "rank": rank + 1, "score": found.scores[query, rank]}), about], axis=1)


def build_gallery(
    run: Run | Path | str,
    out: Path | str,
    store: FeatureStore | Path | str | None = None,
    split: str | None = None,
    modalities: Sequence[str] | None = None,
    scorer: str | None = None,
    calibrate: bool = False,
    kind: Kind = "flat",
    options: Mapping[str, int] | None = None,
    gpus: int = 0,
    device: str = "auto",
) -> Gallery:
    """Index the items of a store (default: all of the run's own) as the model of `run` sees them, and write the folder `out`.

    An item is the vector `scorer` makes of what it shows of `modalities` (default: all); the scorer is the run's own: the centroid for
    runs that compare pairs by cosine, likelihood-ratio or sum for the others. `calibrate` fills its gaps with the run's imputer first. Items that
    show none of the modalities are left out and counted (`left_out`). For approximate indexes, gallery.json keeps the share of the true ten
    nearest items that a search finds (`recall_against_exact`), measured with up to 1,000 of the store's own rows as queries; recall.csv
    holds it for more and for less effort, on the CPU. `gpus` are used to build the index; the folder is the same.
    Raises CalmrlError for scorers that make no vector of an item, unknown or repeated modalities, `calibrate` with a run without imputer or
    a scorer that needs no gap filled, a likelihood ratio for a run without PPCA, and an existing folder that is no index.
    """
    import pandas as pd

    out = Path(out)
    _check_folder(out)
    run, model, found = open_run(run, store, device)
    scorer = scorer or ("centroid" if model.similarity.name == "cosine" else model.similarity.name)
    by_cosine = family(scorer) == "cosine"
    if calibrate and not by_cosine:
        raise CalmrlError(
            f"scorer '{scorer}' adds up what an item shows, so there are no gaps to fill",
            hint="index without --calibrate, or with --scorer centroid",
        )
    table = found.of(split)
    if by_cosine:
        made = by_embeddings(model, table, modalities, scorer, calibrate)
    else:
        made = by_similarity(model, table, modalities, scorer)
    embedded, vectors, shown = made.embedded, made.vectors, made.rows
    # Built on GPUs or not: what is measured below is what a search will open.
    index = build_index(vectors, kind, options, gpus).on_cpu()
    folder = Run(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CalmrlError(f"the index folder '{out}' cannot be made: {error.strerror or error}") from None
    patterns = np.asarray(pattern_names(embedded.mask.cpu().numpy(), embedded.modalities))
    items = {"id": embedded.ids[shown], "group": embedded.group[shown], "pattern": patterns[shown]}
    labels = {f"label.{name}": values[shown] for name, values in found.labels(split).items()}
    facts = {
        "format": FORMAT,
        "run": run.name,
        "store": {"path": str(found.store.path), "dataset": found.store.dataset, "digest": found.store.digest},
        "split": split or "all",
        "kind": kind,
        "options": dict(options or {}),
        "scorer": scorer,
        "run_similarity": model.similarity.name,
        "weights": {} if by_cosine else weights_of(model.compared_by(family(scorer)).similarity),
        "calibrated": calibrate,
        "modalities": list(made.modalities),
        **made.facts,
        "encoders": {m: encoder_of(found.store, m) for m in embedded.modalities},
        "dim": vectors.shape[1],
        "items": len(shown),
        "left_out": len(embedded) - len(shown),
        "recall_queries": len(made.probes),
        "recall_against_exact": None,
    }
    probes = made.probes
    if kind != "flat":
        exact = build_index(vectors).search(probes, PROBED)
        facts["recall_against_exact"] = float(recall_against_exact(index.search(probes, PROBED), exact).mean())
    # gallery.json goes last: a folder without it is no index.
    (out / "gallery.json").unlink(missing_ok=True)
    # What makes query vectors, and nothing else of the run.
    replace(model.compared_by(family(scorer)), alternatives=(), imputer=None, objective=None).save(folder)
    if made.transform is not None:
        folder.write_tensors(_TRANSFORM, {"scale": made.transform.scale}, {})
    else:
        (out / _TRANSFORM).unlink(missing_ok=True)
    folder.write_frame("items.parquet", pd.DataFrame({**items, **labels}))
    index.save(out / "index.faiss")
    _write_recall(out, index, vectors, probes)
    folder.write_json("gallery.json", facts)
    return Gallery.open(out)


def _check_folder(out: Path) -> None:
    """CalmrlError if `out` is there and is no index, whole or unfinished."""
    if not out.exists():
        return
    if not out.is_dir():
        raise CalmrlError(f"'{out}' exists and is not a folder", hint="choose another --out")
    others = [inner.name for inner in out.iterdir() if inner.name not in _FILES and not is_temporary(inner.name)]
    if others and not (out / "gallery.json").is_file():
        raise CalmrlError(f"'{out}' exists and is not an index: it holds {others[0]}", hint="choose another --out")


def encoder_of(store: FeatureStore, modality: str) -> dict[str, str]:
    """Name and fingerprint of the encoder that made a modality of `store`."""
    entry = next(entry for entry in store.attributes["modalities"] if entry["name"] == modality)
    return {"name": str(entry["encoder"]), "fingerprint": str(entry["fingerprint"])}


def _write_recall(out: Path, index: Index, vectors: np.ndarray, probes: np.ndarray) -> None:
    """recall.csv of an approximate index; none of an exact one. A figure of an earlier index goes: the command that builds one draws it anew."""
    from calmrl_lab.search.ann_recall import effort_curve

    for name in ("recall.csv", "recall.svg"):
        (out / name).unlink(missing_ok=True)
    if index.kind != "flat":
        write_atomically(out / "recall.csv", effort_curve(index, vectors, probes, PROBED).to_csv(index=False).encode())
