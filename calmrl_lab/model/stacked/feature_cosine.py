"""The cosine of features as they come, between modalities that share a space before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from calmrl_lab.linalg.floating_range import unit_rows
from calmrl_lab.model.similarity import Patterns, similarity_kind


@similarity_kind
@dataclass(frozen=True)
class FeatureCosine:
    """Cosine of unit-norm features, minus the centre of their modality where there are `centres`; zero across groups.

    `groups` are tuples of modalities; those of one group have features of one dimension and are compared with each other. Each group has
    coordinates of its own among the `dim` of a vector, so that modalities of different groups are orthogonal. `centres`: modality to [d_m],
    the mean of its unit-norm features; without one, features stay as they are.
    """

    groups: tuple[tuple[str, ...], ...]
    dims: tuple[int, ...]
    centres: Mapping[str, Float[Tensor, " d_m"]]
    name: ClassVar[str] = "feature-cosine"
    symmetric: ClassVar[bool] = True

    @property
    def dim(self) -> int:
        """The dimensions of all groups together."""
        return sum(self.dims)

    def vectors(self, modality: str, features: Tensor, embeddings: Tensor) -> Float[Tensor, "n r"]:
        """The unit-norm features, float64, at the coordinates of their group; zeros for a modality of no group."""
        found = features.new_zeros(len(features), self.dim, dtype=torch.float64)
        start = 0
        for group, dim in zip(self.groups, self.dims, strict=True):
            if modality in group:
                rows = unit_rows(features.double())
                if modality in self.centres:
                    rows = normalize(rows - self.centres[modality].to(rows), dim=1)
                found[:, start : start + dim] = rows
            start += dim
        return found

    def pair_vectors(self, query: str, gallery: str, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors of both sides."""
        return queries, candidates

    def set_scores(self, query: str, shown: Sequence[str], queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        """Cosine of the query with the mean of what an item shows of the query's group."""
        return queries.double() @ self.item_vectors(shown, (), items, mask).T

    def item_vectors(self, shown: Sequence[str], patterns: Patterns, items: Tensor, mask: Tensor) -> Tensor:
        """For every group, the normalised sum of what an item shows of it."""
        total = items.double().sum(dim=1)
        return torch.cat([normalize(part, dim=1) for part in total.split(list(self.dims), dim=1)], dim=1)

    def query_vectors(self, shown: Sequence[str], patterns: Patterns, query: str, queries: Tensor) -> Tensor:
        """The vectors."""
        return queries.double()

    def to(self, device: torch.device | str) -> Self:
        """The same similarity on another device."""
        return type(self)(self.groups, self.dims, {name: centre.to(device) for name, centre in self.centres.items()})

    def described(self, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The groups, and the centres as tensors."""
        facts = {"kind": self.name, "groups": [list(group) for group in self.groups], "dims": list(self.dims)}
        return facts, {f"{prefix}centre/{name}": centre for name, centre in self.centres.items()}

    @classmethod
    def read(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str) -> Self:
        """The inverse of `described`."""
        start = f"{prefix}centre/"
        centres = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        return cls(tuple(tuple(group) for group in description["groups"]), tuple(description["dims"]), centres)
