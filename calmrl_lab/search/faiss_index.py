"""Search by FAISS: the best k of a gallery of vectors, exactly or approximately, on the CPU or on GPUs, kept in one file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Int

from calmrl_lab.data.table import sampled
from calmrl_lab.errors import CalmrlError, WorkFailedError, missing_extra
from calmrl_lab.registry import known
from calmrl_lab.runtime.progress import progress, tracked

Kind = Literal["flat", "ivf", "hnsw"]
KINDS: tuple[str, ...] = get_args(Kind)
# FAISS trains k-means on at most this many vectors per list; below 39 it warns that centroids are poor.
_POINTS_A_LIST, _MOST_POINTS_A_LIST = 39, 256
# FAISS on a GPU neither returns more neighbours nor visits more lists than this.
_GPU_MOST = 2048


class Found(NamedTuple):
    """The best k of every query: inner products, descending, and gallery positions; -inf and -1 where fewer were found."""

    scores: Float[np.ndarray, "q k"]
    positions: Int[np.ndarray, "q k"]


@dataclass(frozen=True)
class Index:
    """Gallery vectors ready to be searched by inner product. Options that trade speed for recall are arguments of `search`.

    `lists` are the k-means cells of an ivf index, 0 for others; `gpus` how many GPUs the vectors are shared out among, 0 for the CPU.
    """

    kind: Kind
    faiss_index: Any
    lists: int = 0
    gpus: int = 0

    def __len__(self) -> int:
        return int(self.faiss_index.ntotal)

    @property
    def dim(self) -> int:
        return int(self.faiss_index.d)

    def search(
        self, queries: Float[np.ndarray, "q d"], k: int, effort: int | None = None, among: Int[np.ndarray, " m"] | None = None
    ) -> Found:
        """The best `k` gallery vectors of every query.

        `effort` is the number of lists visited (ivf, default 16) or of candidates kept (hnsw, default 128): more find more of the
        true neighbours and take longer. Raises CalmrlError for a dimension that does not fit, NaN, k < 1, an effort for an exact
        index, and more than 2,048 neighbours on GPUs.
        """
        vectors = _vectors(queries, "queries")
        if vectors.shape[1] != self.dim:
            raise CalmrlError(f"the index holds vectors of dimension {self.dim}, the queries have {vectors.shape[1]}")
        if k < 1:
            raise CalmrlError(f"a search returns at least one item, got k = {k}")
        wanted = min(k, len(self))
        if self.gpus and wanted > _GPU_MOST:
            raise CalmrlError(f"a search on GPUs returns at most {_GPU_MOST} items, got k = {k}", hint="search without GPUs")
        parameters = self._parameters(effort, wanted)
        if among is not None:
            if self.gpus:
                raise CalmrlError("a search among some of the items runs on the CPU", hint="search without GPUs")
            parameters = parameters or _faiss().SearchParameters()
            parameters.sel = _faiss().IDSelectorBatch(np.ascontiguousarray(among, dtype=np.int64))
        scores, positions = self.faiss_index.search(vectors, wanted, **({"params": parameters} if parameters else {}))
        scores[positions < 0] = -np.inf
        if wanted == k:
            return Found(scores, positions)
        padding = ((0, 0), (0, k - wanted))
        return Found(np.pad(scores, padding, constant_values=-np.inf), np.pad(positions, padding, constant_values=-1))

    def vectors(self, positions: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
        """The vectors at `positions`, as they were added."""
        index = self.on_cpu().faiss_index
        if self.kind == "ivf":
            index.make_direct_map()
        found: np.ndarray = index.reconstruct_batch(np.ascontiguousarray(positions, dtype=np.int64))
        return found

    def _parameters(self, effort: int | None, k: int) -> Any:
        faiss = _faiss()
        if effort is not None and self.kind == "flat":
            raise CalmrlError("a flat index is exact: there is no effort to choose", hint="leave it out, or use ivf or hnsw")
        if effort is not None and effort < 1:
            raise CalmrlError(f"effort is {effort}, expected at least 1")
        if self.kind == "ivf":
            most = min(self.lists, _GPU_MOST) if self.gpus else self.lists
            return faiss.SearchParametersIVF(nprobe=min(effort or 16, most))
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(effort or 128, k))
        return None

    def on_gpus(self, gpus: int) -> Index:
        """The same index with its vectors shared out among the first `gpus` GPUs.

        Raises CalmrlError for a kind that FAISS has on the CPU only and for GPUs that it does not see, WorkFailedError if they have no room.
        """
        _require_gpus(self.kind, gpus)
        faiss = _faiss()
        options = faiss.GpuMultipleClonerOptions()
        options.shard = True
        try:
            placed = faiss.index_cpu_to_all_gpus(self.faiss_index, co=options, ngpu=gpus)
        except RuntimeError as error:
            raise WorkFailedError(
                f"FAISS cannot put the index on {gpus} GPUs: {str(error).splitlines()[0]}",
                hint="search without GPUs, or on more",
            ) from None
        return replace(self, faiss_index=placed, gpus=gpus)

    def on_cpu(self) -> Index:
        """The same index on the CPU."""
        return replace(self, faiss_index=_faiss().index_gpu_to_cpu(self.faiss_index), gpus=0) if self.gpus else self

    def write(self, path: Path) -> None:
        """Write the index to a file, without a second copy in memory."""
        try:
            _faiss().write_index(self.on_cpu().faiss_index, str(path))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise WorkFailedError(
                f"'{path}' could not be written: {reason}", hint=f"free some space in '{path.parent}' or write elsewhere"
            ) from error

    @classmethod
    def read(cls, source: Path, kind: Kind) -> Index:
        """The index that `write` wrote. Raises CalmrlError if it is damaged, or not of this kind."""
        faiss = _faiss()
        try:
            found = faiss.read_index(str(source))
        except RuntimeError as error:
            raise CalmrlError(
                f"index '{source}' is damaged: {str(error).splitlines()[0]}", hint="calmrl-lab index writes it anew"
            ) from None
        if hasattr(found, "nlist") != (kind == "ivf"):
            raise CalmrlError(f"index '{source}' is not of kind '{kind}'", hint="calmrl-lab index writes it anew")
        return cls(kind, found, int(found.nlist) if kind == "ivf" else 0)


def build_index(
    vectors: Float[np.ndarray, "g d"], kind: Kind = "flat", options: Mapping[str, int] | None = None, gpus: int = 0
) -> Index:
    """An index over `vectors` (searched by inner product, the cosine of unit-norm embeddings).

    flat: exact. ivf: `nlist` k-means cells (default sqrt(G), at most G/39). hnsw: a graph of `m` links per vector (default 32) built
    with `ef_construction` candidates (default 200). `gpus` > 0 finds the cells of a flat or ivf index on a GPU and shares its vectors out
    among that many (faiss-gpu); everything else is the same.
    Raises CalmrlError for an unknown kind or option, NaN, an empty gallery, or GPUs that FAISS does not see.
    """
    data = _vectors(vectors, "gallery")
    index = empty_index(len(data), data.shape[1], lambda positions: data[positions], kind, options, gpus)
    index.faiss_index.add(data)
    return index


def build_index_of_blocks(
    count: int,
    dim: int,
    blocks: Iterable[Float[np.ndarray, "b d"]],
    at: Callable[[Int[np.ndarray, " m"]], Float[np.ndarray, "m d"]],
    kind: Kind = "flat",
    options: Mapping[str, int] | None = None,
    gpus: int = 0,
) -> Index:
    """`build_index` of `count` vectors that come in `blocks`; `at` gives those at ascending positions."""
    index = empty_index(count, dim, at, kind, options, gpus)
    with progress("building the index", count, "vectors") as task:
        for block in blocks:
            index.faiss_index.add(_vectors(block, "gallery"))
            task.advance(len(block))
    return index


def empty_index(
    count: int,
    dim: int,
    at: Callable[[Int[np.ndarray, " m"]], Float[np.ndarray, "m d"]],
    kind: Kind,
    options: Mapping[str, int] | None,
    gpus: int,
) -> Index:
    """An index for `count` vectors that are yet to be added; cells are found from those `at` positions spread over all. Errors as `build_index`."""
    faiss = _faiss()
    if count == 0:
        raise CalmrlError("a gallery of no items cannot be searched", hint="check --split and the modalities that were named")
    chosen = _options(kind, options or {}, count)
    if gpus:
        _require_gpus(kind, gpus)
    lists = 0
    if kind == "ivf":
        lists = min(chosen["nlist"], count)
        data = _vectors(at(sampled(count, min(count, _MOST_POINTS_A_LIST * lists))), "gallery")
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1  # small galleries are no reason for a warning on standard error
        # Cells are found before the index is shared out: every GPU must have the same.
        centres = Index("flat", faiss.IndexFlatIP(dim)).on_gpus(1) if gpus else None
        index.clustering_index = None if centres is None else centres.faiss_index
        with progress(f"finding {lists} cells from {len(data)} vectors"):
            index.train(data)
        index.clustering_index = None
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, chosen["m"], faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = chosen["ef_construction"]
    else:
        index = faiss.IndexFlatIP(dim)
    made = Index(kind, index, lists)
    return made.on_gpus(gpus) if gpus else made


def exact_search(blocks: Iterable[Float[np.ndarray, "b d"]], queries: Float[np.ndarray, "q d"], k: int) -> tuple[Found, float]:
    """The best `k` of vectors that come in blocks, of which only one is in memory, and the seconds that searching took."""
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    positions = np.full((len(queries), k), -1, dtype=np.int64)
    start, seconds = 0, 0.0
    for block in tracked(blocks, "exact search", unit="blocks"):
        flat = build_index(block)
        begun = time.perf_counter()
        found = flat.search(queries, k)
        seconds += time.perf_counter() - begun
        both = np.concatenate([scores, found.scores], axis=1)
        places = np.concatenate([positions, np.where(found.positions >= 0, found.positions + start, -1)], axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, :k]
        scores, positions = np.take_along_axis(both, order, axis=1), np.take_along_axis(places, order, axis=1)
        start += len(block)
    return Found(scores, positions), seconds


def recall_against_exact(found: Found, exact: Found) -> Float[np.ndarray, " q"]:
    """Share of every query's true best k that an approximate search found; ties at the k-th place count as found.

    Judged by score, not by position, so that interchangeable duplicates are no loss. Raises CalmrlError if the shapes differ.
    """
    if found.scores.shape != exact.scores.shape:
        raise CalmrlError(f"searches of different shape: {list(found.scores.shape)} and {list(exact.scores.shape)}")
    wanted = (exact.positions >= 0).sum(axis=1)
    last = np.where(exact.positions >= 0, exact.scores, np.inf).min(axis=1, keepdims=True)
    # The same product taken by another kernel may differ in the last float32 digits.
    near = last - 1e-5 * np.maximum(1.0, np.abs(last))
    hit = ((found.positions >= 0) & (found.scores >= near)).sum(axis=1)
    return np.minimum(hit, wanted) / np.maximum(wanted, 1)


def _options(kind: str, asked: Mapping[str, int], count: int) -> dict[str, int]:
    defaults = _defaults(kind, count)
    for name, value in asked.items():
        known(name, list(defaults), f"index '{kind}' has no option")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CalmrlError(f"index '{kind}': {name} is {value!r}, expected a whole number of at least 1")
    return {**defaults, **asked}


def _defaults(kind: str, count: int) -> dict[str, int]:
    known(kind, KINDS, "unknown index")
    if kind == "flat":
        return {}
    if kind == "ivf":
        return {"nlist": max(1, min(int(count**0.5), count // _POINTS_A_LIST))}
    return {"m": 32, "ef_construction": 200}


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise missing_extra("faiss", "cpu", "search (with a GPU: the extra 'gpu' instead; never both)") from None
    return faiss


def _vectors(vectors: Any, what: str) -> Float[np.ndarray, "n d"]:
    data = np.ascontiguousarray(vectors, dtype=np.float32)
    if data.ndim != 2:
        raise CalmrlError(f"{what} must be vectors [n, d], got shape {list(data.shape)}")
    if not np.isfinite(data).all():
        raise CalmrlError(f"{what} hold NaN or infinity", hint="calmrl-lab store verify, or train the run again")
    return data


def _require_gpus(kind: str, gpus: int) -> None:
    faiss = _faiss()
    if kind == "hnsw":
        raise CalmrlError("index 'hnsw' runs on the CPU only", hint="use flat or ivf on GPUs")
    seen = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    if gpus > seen:
        raise CalmrlError(
            f"FAISS sees {seen} GPUs, and {gpus} were asked for", hint="calmrl-lab doctor tells which FAISS is installed"
        )
