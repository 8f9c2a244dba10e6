"""Items with gaps as single vectors for runs that compare by overlap: what lets a search index hold evidence about a latent vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from calmrl_lab.data.patterns import Patterns, places
from calmrl_lab.ppca.latent_maps import LatentMaps


@dataclass(frozen=True)
class EvidenceVectors:
    """Queries of any modality and items that show any of `shown` as vectors whose inner product is scorer 'overlap', or 'both'.

    The overlap of query modality a with an item of pattern P is h' B g + c_P(h) + o_a(g) (`LatentMaps.log_density_ratio`), h and g their
    evidence and B the covariance given a and P. An item therefore holds B g and o_a(g) for every query modality a, and which of the
    `patterns` it is of; a query holds h and one at the place of its modality, and c_P(h) for every pattern. With a `weight` the cosine
    with the mean of what the item shows stands behind, times that weight.

    `shown` are places among the modalities of `maps`, `patterns` what the items show of them, each a tuple of such places.
    """

    maps: LatentMaps
    weight: float | None
    shown: tuple[int, ...]
    patterns: tuple[tuple[int, ...], ...]

    @classmethod
    def of_items(
        cls, maps: LatentMaps, weight: float | None, shown: Sequence[int], mask: Bool[Tensor, "n k"]
    ) -> EvidenceVectors:
        """For items of which `mask` [n, len(shown)] says what they show; an item that shows nothing has no pattern."""
        kinds = (places(kind) for kind in Patterns.of(mask).shown.tolist())
        return cls(maps, weight, tuple(shown), tuple(tuple(shown[j] for j in kind) for kind in kinds if kind))

    def items(
        self, evidence: Float[Tensor, "n k q"], embeddings: Float[Tensor, "n k d"], mask: Bool[Tensor, "n k"]
    ) -> Float[Tensor, "n r"]:
        """Vectors of items, float64; zeros for items that show nothing. The columns are those of `shown`, hidden entries zero."""
        modalities, q = len(self.maps.modalities), self.maps.latent_dim
        terms = evidence.new_zeros(len(mask), modalities * (q + 1) + len(self.patterns), dtype=torch.float64)
        for number, pattern in enumerate(self.patterns):
            kind = torch.tensor([j in pattern for j in self.shown], device=mask.device)
            rows = (mask == kind).all(dim=1).nonzero().squeeze(1)
            total = evidence[rows].double().sum(dim=1)
            for asking in range(modalities):
                both = self.maps.covariance(asking, *pattern).to(total.device)
                terms[rows, asking * q : (asking + 1) * q] = total @ both
                terms[rows, modalities * q + asking] = self.maps.item_term(asking, pattern, total)
            terms[rows, modalities * (q + 1) + number] = 1.0
        if self.weight is None:
            return terms
        return torch.cat([terms, functional.normalize(embeddings.double().sum(dim=1), dim=1)], dim=1)

    def queries(self, modality: int, evidence: Float[Tensor, "a q"], embeddings: Float[Tensor, "a d"]) -> Float[Tensor, "a r"]:
        """Vectors of queries of one modality, float64."""
        modalities, q = len(self.maps.modalities), self.maps.latent_dim
        asked = evidence.double()
        terms = asked.new_zeros(len(asked), modalities * (q + 1) + len(self.patterns))
        terms[:, modality * q : (modality + 1) * q] = asked
        terms[:, modalities * q + modality] = 1.0
        for number, pattern in enumerate(self.patterns):
            terms[:, modalities * (q + 1) + number] = self.maps.query_term(modality, pattern, asked)
        return terms if self.weight is None else torch.cat([terms, self.weight * embeddings.double()], dim=1)


@dataclass(frozen=True)
class InnerProductTransform:
    """Changes items and queries so that their inner products stay, and near items are those that the same queries find.

    Graphs and cells are made of items alone: they fail where a coordinate is large in items and small in queries, and where items differ in
    length. So every coordinate of an item is multiplied by `scale` [r] (float64, above 0) and that of a query divided by it, and items get
    one coordinate more, zero in queries, that gives all of them the same length (Bachrach et al., RecSys 2014).
    """

    scale: Float[np.ndarray, " r"]

    @classmethod
    def of(cls, items: Float[np.ndarray, "n r"], queries: Float[np.ndarray, "q r"]) -> InnerProductTransform:
        """The scale under which every coordinate has the same root mean square in items and in queries; 1 where it is zero in either."""
        theirs, ours = (
            np.sqrt(np.square(part).mean(axis=0)) if len(part) else np.zeros(part.shape[1]) for part in (queries, items)
        )
        known = (theirs > 0) & (ours > 0)
        return cls(np.where(known, np.sqrt(np.divide(theirs, ours, where=known, out=np.ones_like(ours))), 1.0))

    def items(self, vectors: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "n r+1"]:
        """float32."""
        scaled = vectors * self.scale
        squares = np.square(scaled).sum(axis=1)
        rest = np.sqrt(squares.max(initial=0.0) - squares)
        return np.concatenate([scaled, rest[:, None]], axis=1).astype(np.float32)

    def queries(self, vectors: Float[np.ndarray, "q r"]) -> Float[np.ndarray, "q r+1"]:
        """float32."""
        return np.pad(vectors / self.scale, ((0, 0), (0, 1))).astype(np.float32)
