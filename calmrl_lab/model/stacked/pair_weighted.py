"""A similarity that counts more for some pairs of modalities than for others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.model import similarity
from calmrl_lab.model.similarity import Patterns, Similarity, similarity_kind


@similarity_kind
@dataclass(frozen=True)
class PairWeighted:
    """`part` times a weight that the two modalities decide: `weights` [k, k], symmetric, in the order of `modalities`, float64.

    Where an item may show several modalities, the weight is the mean over those that items of the gallery may show.
    """

    part: Similarity
    modalities: tuple[str, ...]
    weights: Float[Tensor, "k k"]
    name: ClassVar[str] = "pair-weighted"
    symmetric: ClassVar[bool] = False

    @property
    def dim(self) -> int:
        """That of the part."""
        return self.part.dim

    def weight(self, query: str, shown: Sequence[str]) -> float:
        """How much the part counts for queries of one modality and items that may show the modalities `shown`."""
        place = self.modalities.index(query)
        return float(self.weights[place, [self.modalities.index(name) for name in shown]].mean())

    def vectors(self, modality: str, features: Tensor, embeddings: Tensor) -> Tensor:
        """Those of the part."""
        return self.part.vectors(modality, features, embeddings)

    def pair_vectors(self, query: str, gallery: str, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the part, the queries' times the weight."""
        left, right = self.part.pair_vectors(query, gallery, queries, candidates)
        return self.weight(query, [gallery]) * left, right

    def set_scores(self, query: str, shown: Sequence[str], queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        """Those of the part times the weight."""
        return self.weight(query, shown) * self.part.set_scores(query, shown, queries, items, mask)

    def item_vectors(self, shown: Sequence[str], patterns: Patterns, items: Tensor, mask: Tensor) -> Tensor:
        """Those of the part."""
        return self.part.item_vectors(shown, patterns, items, mask)

    def query_vectors(self, shown: Sequence[str], patterns: Patterns, query: str, queries: Tensor) -> Tensor:
        """Those of the part times the weight."""
        return self.weight(query, shown) * self.part.query_vectors(shown, patterns, query, queries)

    def to(self, device: torch.device | str) -> Self:
        """The same similarity on another device; the weights stay on the CPU."""
        return type(self)(self.part.to(device), self.modalities, self.weights)

    def described(self, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The part, the modalities, and the weights as a tensor."""
        description, tensors = self.part.described(f"{prefix}part/")
        facts = {"kind": self.name, "part": description, "modalities": list(self.modalities)}
        return facts, {**tensors, f"{prefix}weights": self.weights}

    @classmethod
    def read(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str) -> Self:
        """The inverse of `described`."""
        part = similarity.read(description["part"], tensors, f"{prefix}part/")
        return cls(part, tuple(description["modalities"]), tensors[f"{prefix}weights"])
