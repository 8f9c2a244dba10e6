"""The cosine of canonical variates: every pair of modalities has directions of its own, in which the two are correlated."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.linalg.canonical_correlation import CanonicalCorrelation
from calmrl_lab.linalg.kernel_pca import KernelPCA
from calmrl_lab.linalg.whitened_pca import WhitenedPCA
from calmrl_lab.model import feature_map
from calmrl_lab.model.feature_map import FeatureMap, identities
from calmrl_lab.model.selection import mean_over_directions, pairs_of_modalities
from calmrl_lab.model.similarity import Patterns, similarity_kind
from calmrl_lab.runtime.progress import tracked

# Principal components that are kept of each modality.
COMPONENTS = 400
_REGULARISATIONS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_FIRST = 3.0
_DIMENSIONS = (16, 32, 64, 128)


@similarity_kind
@dataclass(frozen=True)
class CanonicalCosine:
    """Cosine of the canonical variates of a pair of modalities, each weighted by the root of its correlation; zero for a pair never observed.

    `feature_maps`, one per modality, come first; `maps` [i_m, (k - 1) c] take what they give about `centres` [i_m] to c variates for each of
    the k - 1 other modalities, in their order.
    """

    modalities: tuple[str, ...]
    centres: tuple[Float[Tensor, " i_m"], ...]
    maps: tuple[Float[Tensor, "i_m v"], ...]
    feature_maps: tuple[FeatureMap, ...]
    name: ClassVar[str] = "canonical-cosine"
    symmetric: ClassVar[bool] = True

    @property
    def dim(self) -> int:
        """(k - 1) c."""
        return self.maps[0].shape[1]

    def vectors(self, modality: str, features: Tensor, embeddings: Tensor) -> Float[Tensor, "n v"]:
        """Unit-norm variates for every other modality, side by side, float64."""
        place = self.modalities.index(modality)
        seen = self.feature_maps[place](features).double()
        rows = (seen - self.centres[place].to(features.device)) @ self.maps[place].to(features.device)
        return normalize(self._blocks(rows), dim=-1).flatten(-2)

    def pair_vectors(self, query: str, gallery: str, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """The variates that each side has for the other."""
        return self._for(query, gallery, queries), self._for(gallery, query, candidates)

    def set_scores(self, query: str, shown: Sequence[str], queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        """The mean of the cosines with what an item shows."""
        asked, there = (queries.double(), items.double())
        total = asked.new_zeros(len(queries), len(items))
        for place, name in enumerate(shown):
            if name != query:
                total += self._for(query, name, asked) @ self._for(name, query, there[:, place]).T
        return total / mask.sum(dim=1).clamp_min(1)

    def item_vectors(self, shown: Sequence[str], patterns: Patterns, items: Tensor, mask: Tensor) -> Tensor:
        """For every query modality and every modality that an item may show, the variates, divided by how many the item shows."""
        share = 1 / mask.sum(dim=1, keepdim=True).clamp_min(1).double()
        parts = [
            self._for(name, query, items[:, place].double()) * share
            for query in self.modalities
            for place, name in enumerate(shown)
            if name != query
        ]
        return torch.cat(parts, dim=1)

    def query_vectors(self, shown: Sequence[str], patterns: Patterns, query: str, queries: Tensor) -> Tensor:
        """The variates of the query for every modality that an item may show, at the places of the query's modality."""
        empty = queries.new_zeros(len(queries), self.dim // (len(self.modalities) - 1), dtype=torch.float64)
        parts = [
            self._for(query, name, queries.double()) if asking == query else empty
            for asking in self.modalities
            for name in shown
            if name != asking
        ]
        return torch.cat(parts, dim=1)

    def to(self, device: torch.device | str) -> Self:
        """The same similarity with its feature maps on another device; centres and maps follow the features."""
        return replace(self, feature_maps=tuple(one.to(device) for one in self.feature_maps))

    def described(self, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The modalities and their feature maps, and centres and maps as tensors."""
        tensors = {f"{prefix}centre/{name}": centre for name, centre in zip(self.modalities, self.centres, strict=True)}
        tensors |= {f"{prefix}map/{name}": weight for name, weight in zip(self.modalities, self.maps, strict=True)}
        feature_maps = []
        for number, one in enumerate(self.feature_maps):
            description, found = feature_map.described(one, f"{prefix}maps/{number}/")
            feature_maps.append(description)
            tensors |= found
        return {"kind": self.name, "modalities": list(self.modalities), "feature_maps": feature_maps}, tensors

    @classmethod
    def read(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str) -> Self:
        """The inverse of `described`."""
        names = tuple(description["modalities"])
        centres = tuple(tensors[f"{prefix}centre/{name}"] for name in names)
        maps = tuple(tensors[f"{prefix}map/{name}"] for name in names)
        before = (feature_map.read(one, tensors, f"{prefix}maps/{j}/") for j, one in enumerate(description["feature_maps"]))
        return cls(names, centres, maps, tuple(before))

    def _blocks(self, rows: Float[Tensor, "n v"]) -> Float[Tensor, "n o c"]:
        return rows.unflatten(-1, (len(self.modalities) - 1, -1))

    def _for(self, own: str, other: str, vectors: Float[Tensor, "n v"]) -> Float[Tensor, "n c"]:
        others = [name for name in self.modalities if name != own]
        return self._blocks(vectors)[..., others.index(other), :]


def fit_canonical_cosine(table: FeatureTable, validation: FeatureTable) -> tuple[CanonicalCosine, dict[str, Any]]:
    """Regularised canonical correlation of every pair of modalities that training items show together, and what was chosen.

    Covariances are of all rows that show a modality, cross-covariances of the items that show both. The regularisation and the number of
    variates are the same for all pairs and have the highest mean reciprocal rank on `validation`. Every modality needs two rows.
    """
    rows = [part.double() for part in table.first_rows()]
    axes = [WhitenedPCA.of(part[table.mask[:, j]], COMPONENTS) for j, part in enumerate(rows)]
    before = identities([part.shape[1] for part in rows])
    return _fitted(table.mask, rows, validation, validation.first_rows(), axes, before)


def fit_kernel_canonical_cosine(
    table: FeatureTable, validation: FeatureTable, kernels: Sequence[KernelPCA]
) -> tuple[CanonicalCosine, dict[str, Any]]:
    """`fit_canonical_cosine` of the kernel principal components that `kernels`, one per modality, make of the features: variates that are
    correlated though not linear in the features (kernel canonical correlation; Bach and Jordan, JMLR 2002)."""
    rows, held_out = (
        [one(part).double() for one, part in zip(kernels, of.first_rows(), strict=True)] for of in (table, validation)
    )
    axes = [WhitenedPCA.of_coordinates(part[table.mask[:, j]], COMPONENTS) for j, part in enumerate(rows)]
    return _fitted(table.mask, rows, validation, held_out, axes, tuple(kernels))


def _fitted(
    mask: Bool[Tensor, "n k"],
    rows: Sequence[Float[Tensor, "n i_m"]],
    validation: FeatureTable,
    validation_rows: Sequence[Float[Tensor, "h i_m"]],
    principal: Sequence[WhitenedPCA],
    feature_maps: tuple[FeatureMap, ...],
) -> tuple[CanonicalCosine, dict[str, Any]]:
    names, pairs = validation.modalities, list(itertools.combinations(range(len(validation.modalities)), 2))
    axes = [one.whitened(COMPONENTS, 0.0) for one in principal]  # scaled, not whitened
    lying = [axis.apply(part) * mask[:, j : j + 1] for j, (axis, part) in enumerate(zip(axes, rows, strict=True))]
    held_out = [axis.apply(part) for axis, part in zip(axes, validation_rows, strict=True)]
    variances = [part.square().sum(dim=0) / mask[:, j].sum() for j, part in enumerate(lying)]
    cross = {}
    for a, b in pairs:
        both = mask[:, a] & mask[:, b]
        if int(both.sum()) > 1:
            x, y = lying[a][both], lying[b][both]
            cross[a, b] = (x - x.mean(dim=0)).T @ (y - y.mean(dim=0)) / len(x)

    def fitted(regularisation: float) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        most = _DIMENSIONS[-1]
        return {
            (a, b): CanonicalCorrelation.of(variances[a], variances[b], part, regularisation, most).weighted()
            for (a, b), part in cross.items()
        }

    def reached(found: Mapping[tuple[int, int], tuple[Tensor, Tensor]], dimensions: int) -> float:
        directions = []
        pairs = list(pairs_of_modalities(validation))
        for a, b, both in tracked(pairs, "canonical correlation", unit="pairs of modalities"):
            if (a, b) in found:
                ours, theirs = (part[:, :dimensions] for part in found[a, b])
                scores = normalize(held_out[a][both] @ ours, dim=1) @ normalize(held_out[b][both] @ theirs, dim=1).T
                directions += [scores, scores.T]
        return mean_over_directions(directions)["validation_mrr"]

    tried: dict[float, tuple[float, int, dict[tuple[int, int], tuple[Tensor, Tensor]]]] = {}

    def best_dimensions(regularisation: float) -> float:
        if regularisation not in tried:
            found = fitted(regularisation)
            scores = {dimensions: reached(found, dimensions) for dimensions in _DIMENSIONS}
            dimensions = max(scores, key=lambda number: scores[number])
            tried[regularisation] = (scores[dimensions], dimensions, found)
        return tried[regularisation][0]

    place = _REGULARISATIONS.index(_FIRST)
    for step in (1, -1):
        while 0 <= place + step < len(_REGULARISATIONS):
            if best_dimensions(_REGULARISATIONS[place + step]) <= best_dimensions(_REGULARISATIONS[place]):
                break
            place += step
    best_dimensions(_REGULARISATIONS[place])
    score, dimensions, found = tried[_REGULARISATIONS[place]]
    maps = []
    for j, axis in enumerate(axes):
        blocks = [
            _padded(found.get((min(j, o), max(j, o))), j > o, len(axis.factor), dimensions) for o in range(len(names)) if o != j
        ]
        maps.append(axis.through(torch.cat(blocks, dim=1)))
    chosen = {"regularisation": _REGULARISATIONS[place], "dimensions": dimensions, "validation_mrr": score}
    return CanonicalCosine(names, tuple(axis.centre for axis in axes), tuple(maps), feature_maps), chosen


def _padded(pair: tuple[Tensor, Tensor] | None, second: bool, components: int, dimensions: int) -> Float[Tensor, "r c"]:
    """The directions of one side of a pair, with zeros where there are fewer than `dimensions`."""
    block = torch.zeros(components, dimensions, dtype=torch.float64)
    if pair is not None:
        part = pair[int(second)][:, :dimensions]
        block[:, : part.shape[1]] = part
    return block
