"""Items with gaps as single vectors for runs that compare by overlap: what lets a search index hold evidence about a latent vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from calmrl_lab.latent import LatentMaps


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
        kinds = torch.unique(mask[mask.any(dim=1)], dim=0).tolist()
        return cls(
            maps, weight, tuple(shown), tuple(tuple(j for j, seen in zip(shown, kind, strict=True) if seen) for kind in kinds)
        )

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
