"""A pair scored by two models at once: the overlap of posteriors under PPCA plus the cosine of trained heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.model.joined import AnyHeads
from calmrl_lab.model.selection import mean_ranks, validation_score
from calmrl_lab.ppca.latent_maps import LatentMaps

if TYPE_CHECKING:
    pass

# Weights of a cosine beside the overlap (nats) that validation chooses among: inverse temperatures, down to one that changes little.
BESIDE_OVERLAP: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 6.0, 12.5, 25.0, 50.0, 100.0, 200.0)
# Weights of a cosine beside the cosine of the first member, which has 1.
BESIDE_COSINE: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class OverlapAndCosine:
    """log p(x, y) - log p(x) - log p(y) under PPCA plus `weight` times the cosine of embeddings, as a product of two experts: the first knows how
    sure each modality is, the second was trained to tell items apart."""

    maps: LatentMaps
    heads: AnyHeads
    weight: float

    def compared(
        self, query: int, gallery: int, queries: Float[Tensor, "a d_a"], candidates: Float[Tensor, "b d_b"]
    ) -> tuple[Float[Tensor, "a r"], Float[Tensor, "b r"]]:
        """Vectors (float64) whose inner product is the score of a pair, up to a term a query; as `LatentMaps.compared`."""
        left, right = self.maps.compared(query, gallery, queries, candidates)
        ours, theirs = self.heads.project(query, queries), self.heads.project(gallery, candidates)
        return torch.cat([left, self.weight * ours.double()], dim=1), torch.cat([right, theirs.double()], dim=1)


def choose_weights(
    embeddings: Sequence[Sequence[Float[Tensor, "n d"]]], validation: FeatureTable, maps: LatentMaps | None = None
) -> tuple[list[float], dict[str, float]]:
    """Weights of members whose unit-norm embeddings (k tensors each) of the validation items are given, and the score of their sum.

    One member after the other, each by mean reciprocal rank: beside the first, which has weight 1, or beside the overlap under `maps`.
    """
    if maps is None:
        weights, rest, tried = [1.0], embeddings[1:], BESIDE_COSINE
        joined = [part.double() for part in embeddings[0]]
    else:
        weights, rest, tried = [], embeddings, BESIDE_OVERLAP
        joined = [part.double()[:, :0] for part in embeddings[0]]
    score = _score(joined, validation, maps)
    for member in rest:
        # A weighted sum of cosines ranks as its square roots do side by side; no need for unit norm.
        sums = {w: [torch.cat([a, w**0.5 * b.double()], dim=1) for a, b in zip(joined, member, strict=True)] for w in tried}
        scores = {w: _score(both, validation, maps) for w, both in sums.items()}
        best = max(tried, key=lambda w: scores[w]["validation_mrr"])
        weights.append(best)
        joined, score = sums[best], scores[best]
    return weights, score


def _score(joined: Sequence[Tensor], validation: FeatureTable, maps: LatentMaps | None) -> dict[str, float]:
    if maps is None:
        return validation_score(joined, validation)
    rows = validation.first_rows()

    def one_way(a: int, b: int, both: Tensor) -> Tensor:
        left, right = maps.compared(a, b, rows[a][both], rows[b][both])
        return left @ right.T + joined[a][both] @ joined[b][both].T

    def compared(a: int, b: int, both: Tensor) -> tuple[Tensor, Tensor]:
        return one_way(a, b, both), one_way(b, a, both)

    return mean_ranks(compared, validation)


def overlap_score(maps: LatentMaps, rows: Sequence[Float[Tensor, "n d_m"]], table: FeatureTable) -> dict[str, float]:
    """`validation_score` of features under the overlap of posteriors instead of cosines."""

    def one_way(a: int, b: int, both: Tensor) -> Tensor:
        left, right = maps.compared(a, b, rows[a][both], rows[b][both])
        return left @ right.T

    def compared(a: int, b: int, both: Tensor) -> tuple[Tensor, Tensor]:
        return one_way(a, b, both), one_way(b, a, both)

    return mean_ranks(compared, table)
