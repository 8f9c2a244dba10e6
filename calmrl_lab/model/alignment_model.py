"""What a run learned, in one object: everything after training takes an `AlignmentModel` and items."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from calmrl_lab.data.streaming_table import StreamedTable, table_for
from calmrl_lab.data.table import FeatureTable
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers.base import Imputer
from calmrl_lab.linalg.floating_range import to_float32

# A model may have been saved with similarities of the stack, which only its import makes readable.
from calmrl_lab.model import feature_map, similarity, stacked  # noqa: F401
from calmrl_lab.model.embeddings import Embeddings, owners_of
from calmrl_lab.model.encode import encode, stack
from calmrl_lab.model.feature_map import FeatureMap
from calmrl_lab.model.joined import JoinedHeads
from calmrl_lab.model.projection import Heads, Projection
from calmrl_lab.model.similarity import Cosine, LikelihoodRatio, Similarity, Sum
from calmrl_lab.registry import known
from calmrl_lab.scorers import scorers
from calmrl_lab.scorers._names import family
from calmrl_lab.scorers.base import Scorer, make_scorer
from calmrl_lab.store.convert.arrays_in_memory import unmasked
from calmrl_lab.store.convert.item_ids import frame_index

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore

FILE = "model/model.safetensors"
Items = "FeatureStore | FeatureTable | StreamedTable | Mapping[str, np.ndarray]"


class Folder(Protocol):
    """A folder that keeps named arrays: that of a run or of an index."""

    @property
    def path(self) -> Path: ...

    def write_tensors(self, name: str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None: ...

    def read_tensors(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]: ...


@dataclass(frozen=True)
class TrainedObjective:
    """What an objective learned beside the projection (temperatures, fusion heads), as named arrays."""

    name: str
    options: Mapping[str, Any]
    state: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any], module: nn.Module) -> Self | None:
        """The state of a trained `module`; None if it learned nothing."""
        found = {key: value.detach().cpu() for key, value in module.state_dict().items() if hasattr(value, "detach")}
        # NumPy has no bfloat16.
        state = {key: (value.float() if value.is_floating_point() else value).numpy() for key, value in found.items()}
        return cls(name, dict(options), state) if state else None

    def module(self, modalities: Sequence[str], dim: int) -> nn.Module:
        """The objective as it was trained, on the CPU. Raises CalmrlError if the objective of this name is another one here."""
        from calmrl_lab.objectives import objectives

        made: nn.Module = objectives.get(self.name)(tuple(modalities), dim, **self.options)
        shapes = {key: value.shape for key, value in made.state_dict().items()}
        try:
            # A file of arrays knows no scalars.
            made.load_state_dict(
                {key: torch.from_numpy(np.array(value)).reshape(shapes[key]) for key, value in self.state.items()}
            )
        except (KeyError, RuntimeError):
            raise CalmrlError(f"the trained objective is not '{self.name}' as it is here", hint="train the run again") from None
        return made.eval()


@dataclass(frozen=True)
class AlignmentModel:
    """What a run learned: how the features of an item become embeddings, how items are compared, and what fills their gaps.

    `dims` are the modalities and the dimensions of their features; `feature_maps`, one per modality, are applied first and then `projection`.
    `similarity` is how pairs are compared unless something else is chosen (`compared_by`); `alternatives` are other ways that are
    possible beside it, its parts and the cosine. `imputer` and `objective` are what training fitted, if it did. `source` names the model in
    messages.

    >>> import numpy as np
    >>> from calmrl_lab import FeatureStore, train_heads
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 60, 8))
    >>> store = FeatureStore.from_arrays({"vision": vision, "text": text})
    >>> run = train_heads(store, "clip", epochs=1, dim=4, device="cpu", run="runs/first")
    >>> model = run.model()
    >>> sorted(model.dims)
    ['text', 'vision']
    """

    dims: Mapping[str, int]
    feature_maps: tuple[FeatureMap, ...]
    projection: Projection
    similarity: Similarity
    alternatives: tuple[Similarity, ...] = ()
    imputer: Imputer | None = None
    objective: TrainedObjective | None = None
    source: str = "the model"

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of all arrays."""
        return tuple(self.dims)

    def __repr__(self) -> str:
        dims = ", ".join(f"{name} {dim}" for name, dim in self.dims.items())
        filled = f", imputer {self.imputer.name}" if self.imputer is not None else ""
        return f"AlignmentModel({dims} -> {self.projection.dim}, similarity {self.similarity.name}{filled})"

    @property
    def device(self) -> torch.device:
        """Where the projection is."""
        return next((value.device for value in self.projection.state_dict().values()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> AlignmentModel:
        """The same model on another device."""
        return replace(
            self,
            feature_maps=tuple(one.to(device) for one in self.feature_maps),
            projection=self.projection.to(device),
            similarity=self.similarity.to(device),
            alternatives=tuple(one.to(device) for one in self.alternatives),
        )

    def compared_by(self, name: str | None) -> AlignmentModel:
        """The same model with another similarity: cosine, likelihood-ratio or sum; None for its own.

        Raises CalmrlError for a similarity that this model does not have.
        """
        if name is None or name == self.similarity.name:
            return self
        found = next((one for one in self._similarities() if one.name == name), None)
        if found is not None:
            return replace(self, similarity=found, alternatives=(self.similarity, *self.alternatives))
        if name == LikelihoodRatio.name:
            raise CalmrlError(
                f"{self.source} has no PPCA of its features, which similarity '{name}' needs", hint="train with --init ppca"
            )
        if name == Sum.name:
            raise CalmrlError(
                f"{self.source} chose no weight for similarity '{name}'",
                hint=f"train with --similarity {name}, or compare by another similarity",
            )
        known(name, [Cosine.name, LikelihoodRatio.name, Sum.name], "there is no similarity")
        raise AssertionError(name)

    def _similarities(self) -> Iterator[Similarity]:
        waiting = [self.similarity, *self.alternatives]
        while waiting:
            one = waiting.pop(0)
            yield one
            waiting += [part for part, _ in one.parts] if isinstance(one, Sum) else []
        yield Cosine(self.projection.dim)

    def embed(
        self, items: FeatureStore | FeatureTable | StreamedTable | Mapping[str, np.ndarray], split: str | None = None
    ) -> Embeddings:
        """Unit-norm embeddings of items: a store (one `split` of it, or all), a table, or {modality: features [N, d_m]} with NaN rows for gaps.

        Raises CalmrlError for other modalities or dimensions than those of the model, and for a split without items.
        """
        return self.compared_by(Cosine.name).represent(items, split)

    @torch.no_grad()
    def represent(
        self, items: FeatureStore | FeatureTable | StreamedTable | Mapping[str, np.ndarray], split: str | None = None
    ) -> Embeddings:
        """As `embed`, but with the vectors that `similarity` compares (`Similarity.vectors`) in place of embeddings."""
        table, labels = self._table(items, split)
        rows = tuple(self.vectors(name, features) for name, features in zip(self.modalities, table.rows, strict=True))
        firsts = [self.vectors(name, features) for name, features in zip(self.modalities, table.first_rows(), strict=True)]
        vectors = stack(firsts).masked_fill(~table.mask.unsqueeze(-1), 0.0)
        owners = tuple(owners_of(offsets) for offsets in table.offsets)
        return Embeddings(table.modalities, table.ids, table.group, vectors, table.mask, rows, owners, labels)

    @torch.no_grad()
    def vectors(self, modality: str, features: Float[Tensor, "n d_m"]) -> Float[Tensor, "n r"]:
        """What `similarity` compares of rows of one modality."""
        return self.similarity.vectors(modality, features, self.project(modality, features))

    def encode(self, table: FeatureTable) -> list[Float[Tensor, "n d"]]:
        """Embeddings of every item's first row of each modality, k of [N, d], whatever the mask of `table` hides; zero where there is no row."""
        return encode(self.projection, table.mapped(self.feature_maps))

    def project(self, modality: str, features: Float[Tensor, "n d_m"]) -> Float[Tensor, "n d"]:
        """Unit-norm embeddings of rows of one modality, float32. Raises CalmrlError for an unknown modality."""
        place = known(modality, self.modalities, "the model has no modality")
        return self.projection.project(place, self.feature_maps[place](features.float()))

    @torch.no_grad()
    def pair_vectors(
        self, query: str, gallery: str, queries: Float[Tensor, "a d_a"], candidates: Float[Tensor, "b d_b"]
    ) -> tuple[Float[Tensor, "a s"], Float[Tensor, "b s"]]:
        """Vectors of features of two modalities whose inner product is the similarity, up to a term that depends on the query alone."""
        left, right = self.vectors(query, queries), self.vectors(gallery, candidates)
        return self.similarity.pair_vectors(query, gallery, left, right)

    def scorer(self, name: str, query: str, modalities: Sequence[str]) -> Scorer:
        """`make_scorer` with what this model has for it; it scores vectors of the similarity that it compares by (`family`).

        Raises CalmrlError for a scorer that is unknown or needs what this model lacks.
        """
        needs = scorers.get(name.partition(":")[0]).needs
        parts: dict[str, Any] = {"imputer": self.imputer}
        if "similarity" in needs:
            parts["similarity"] = self.compared_by(family(name)).similarity
        if "objective" in needs:
            parts["objective"] = self.trained_objective()
        return make_scorer(name, query, modalities, parts)

    def trained_objective(self) -> nn.Module:
        """The objective as it was trained, on the CPU; CalmrlError if it learned nothing that was kept."""
        if self.objective is None:
            raise CalmrlError(f"{self.source} kept no trained objective", hint="train it again, with an objective that learns")
        return self.objective.module(self.modalities, self.projection.dim)

    def _table(self, items: Any, split: str | None) -> tuple[FeatureTable, dict[str, np.ndarray]]:
        from calmrl_lab.store import FeatureStore

        if isinstance(items, FeatureTable | StreamedTable):
            return items.in_memory(), {}
        if isinstance(items, Mapping):
            return _table_of_arrays(items, self.dims), {}
        if not isinstance(items, FeatureStore):
            raise CalmrlError(
                f"items to embed are a {type(items).__name__}, expected a store or a dict",
                hint=f"FeatureStore.open(path), or {{modality: features [items, dimension]}} with any of {', '.join(self.dims)}",
            )
        splits = np.asarray(items.split)
        chosen = np.arange(len(items)) if split is None else np.flatnonzero(splits == split)
        if not len(chosen):
            raise CalmrlError(
                f"store '{items.path}' has no items in split '{split}'", hint=f"it has: {', '.join(np.unique(splits))}"
            )
        table = table_for(items, self.dims, str(self.device)).select(chosen).in_memory()
        return table, {name: np.asarray(values)[chosen] for name, values in items.labels.items()}

    def save(self, folder: Folder) -> None:
        """Write everything into one file of `folder`, so that no part of an older model can remain beside it."""
        described: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        for number, one in enumerate(self.feature_maps):
            description, found = feature_map.described(one, f"feature_maps/{number}/")
            described.append(description)
            tensors |= found
        tensors |= {f"projection/{key}": value for key, value in self.projection.state_dict().items()}
        compared = []
        for number, way in enumerate((self.similarity, *self.alternatives)):
            description, found = way.described(f"similarities/{number}/")
            compared.append(description)
            tensors |= found
        arrays = {key: value.cpu().numpy() for key, value in tensors.items()}
        facts: dict[str, Any] = {"dims": dict(self.dims), "feature_maps": described, "projection": _shape(self.projection)}
        facts["similarities"] = compared
        if self.imputer is not None:
            arrays |= {f"imputer/{key}": np.asarray(value) for key, value in self.imputer.state().items()}
            facts["imputer"] = self.imputer.name
        if self.objective is not None:
            arrays |= {f"objective/{key}": value for key, value in self.objective.state.items()}
            facts["objective"] = {"name": self.objective.name, "options": dict(self.objective.options)}
        # One entry: safetensors writes several in an order of its own, and equal models would have different bytes.
        folder.write_tensors(FILE, arrays, {"model": json.dumps(facts)})

    @classmethod
    def load(cls, folder: Folder) -> AlignmentModel:
        """The model that `save` wrote, on the CPU. Raises CalmrlError for a file that is absent, damaged or no model."""
        arrays, metadata = folder.read_tensors(FILE)
        try:
            return replace(cls._read(json.loads(metadata["model"]), arrays), source=f"the model in '{folder.path}'")
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CalmrlError(
                f"'{folder.path / FILE}' holds no model of this version ({error})", hint="train the run again"
            ) from None

    @classmethod
    def _read(cls, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> AlignmentModel:
        tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
        dims = {str(name): int(dim) for name, dim in facts["dims"].items()}
        maps = tuple(feature_map.read(one, tensors, f"feature_maps/{j}/") for j, one in enumerate(facts["feature_maps"]))
        projection = _empty_projection(dims, facts["projection"])
        projection.load_state_dict(_below(tensors, "projection"))
        ways = [similarity.read(one, tensors, f"similarities/{n}/") for n, one in enumerate(facts["similarities"])]
        imputer, objective = None, None
        if "imputer" in facts:
            imputer = imputers.get(facts["imputer"]).from_state(_below(arrays, "imputer"))
            imputer.modalities = tuple(dims)
        if "objective" in facts:
            objective = TrainedObjective(facts["objective"]["name"], facts["objective"]["options"], _below(arrays, "objective"))
        return cls(dims, maps, projection.eval(), ways[0], tuple(ways[1:]), imputer, objective)


def _shape(projection: Projection) -> dict[str, Any]:
    if isinstance(projection, JoinedHeads):
        return {"kind": projection.kind, "parts": [_shape(part) for part in projection.heads()]}
    return {"kind": projection.kind, "dim": projection.dim, "inputs": list(projection.inputs)}


def _empty_projection(dims: Mapping[str, int], shape: Mapping[str, Any]) -> Projection:
    if shape["kind"] == JoinedHeads.kind:
        parts = [_empty_projection(dims, part) for part in shape["parts"]]
        return JoinedHeads([part for part in parts if isinstance(part, Heads)], [1.0] * len(parts))
    return Heads(dict(zip(dims, shape["inputs"], strict=True)), int(shape["dim"]), shape["kind"])


def _below(named: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {key.split("/", 1)[1]: value for key, value in named.items() if key.startswith(f"{part}/")}


def _features(name: str, values: Any, dim: int) -> Float[np.ndarray, "n d"]:
    """Features of one modality as float32. Raises CalmrlError for anything but numbers [N, `dim`]."""
    try:
        found = (
            (values if values.dtype == torch.float64 else values.float()).detach().cpu().numpy()
            if isinstance(values, Tensor)
            else np.asarray(unmasked(values))
        )
        found = found if found.dtype.kind == "f" else found.astype(np.float32)
    except (TypeError, ValueError):
        raise CalmrlError(f"features of '{name}' are no array of numbers", hint=f"an array [items, {dim}]") from None
    if found.ndim != 2 or found.shape[1] != dim:
        raise CalmrlError(
            f"features of '{name}' have shape {list(found.shape)}, expected [items, {dim}]",
            hint="one item is features[None]" if found.shape == (dim,) else None,
        )
    return to_float32(found, name)


def _table_of_arrays(arrays: Mapping[str, np.ndarray], dims: Mapping[str, int]) -> FeatureTable:
    """Items without names from one array per modality; rows that are NaN throughout are gaps, and so are modalities that are left out."""
    for name in arrays:
        known(name, list(dims), "the model has no modality")
    given = {name: _features(name, values, dims[name]) for name, values in arrays.items() if values is not None}
    frame_index(arrays)
    count = max((len(values) for values in given.values()), default=0)
    if not count:
        raise CalmrlError("there are no items to embed", hint="{modality: features [items, dimension]}")
    rows, offsets, masks = [], [], []
    for name, dim in dims.items():
        values = given.get(name, np.full((count, dim), np.nan, dtype=np.float32))
        if len(values) != count:
            raise CalmrlError(
                f"features of '{name}' have {len(values)} items, those of another modality {count}",
                hint="every array has a row for every item, NaN throughout where an item lacks the modality",
            )
        shown = ~np.isnan(values).all(axis=1)
        if not np.isfinite(values[shown]).all():
            raise CalmrlError(f"features of '{name}' hold NaN or infinity in rows that are no gaps")
        rows.append(torch.from_numpy(values[shown]))
        offsets.append(torch.from_numpy(np.concatenate([[0], np.cumsum(shown)])))
        masks.append(torch.from_numpy(shown))
    ids = np.array([str(number) for number in range(count)])
    return FeatureTable(tuple(dims), ids, ids, tuple(rows), tuple(offsets), torch.stack(masks, dim=1))
