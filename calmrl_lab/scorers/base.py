"""The base class of scorers: from queries of one modality and items with gaps to a similarity for every pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.errors import CalmrlError


class Scorer(ABC):
    """Base of the scorers.

    `query` is the modality of the queries, `modalities` are the k modalities of the items, in the order of their arrays. Larger
    scores are better. Embeddings have unit norm where the mask is True; what stands elsewhere is never looked at.
    """

    name: ClassVar[str]
    # An item becomes one vector, whatever the query: ranks take the exact fast path, and a search index can hold the items.
    items_are_vectors: ClassVar[bool] = False
    # The similarity whose vectors of queries and items it takes: embeddings for the cosine.
    compares: ClassVar[str] = "cosine"
    # Parts of a model that its constructor takes by these names: similarity, imputer, objective.
    needs: ClassVar[tuple[str, ...]] = ()
    # Whether it conditions on what is shown, so that gaps need no filling.
    conditions: ClassVar[bool] = False
    # Scores closer than this are tied: the rounding of the scorer in float64.
    tie: ClassVar[float] = 1e-9

    def __init__(self, query: str, modalities: Sequence[str]) -> None:
        self.query = query
        self.modalities = tuple(modalities)

    def serves(self, mask: Bool[Tensor, "g k"]) -> Bool[Tensor, " g"]:
        """Items that show enough to be scored at all; the others rank last."""
        return mask.any(dim=1)

    def score(
        self, queries: Float[Tensor, "q d"], items: Float[Tensor, "g k d"], mask: Bool[Tensor, "g k"]
    ) -> Float[Tensor, "q g"]:
        """Scores of all pairs, float64; -inf for items that `serves` leaves out. Raises CalmrlError for shapes that disagree."""
        self._check(queries, items, mask)
        served = self.serves(mask)
        hidden = ~(mask & served.unsqueeze(1)).unsqueeze(-1)
        scores = self._score(queries.double(), items.double().masked_fill(hidden, 0.0), mask)
        return scores.masked_fill(~served, -torch.inf)

    def vectors(self, items: Float[Tensor, "g k d"], mask: Bool[Tensor, "g k"]) -> Float[Tensor, "g d"]:
        """The vector whose inner product with a query is the score. Only where `items_are_vectors`."""
        raise CalmrlError(
            f"scorer '{self.name}' has no vector per item: its score depends on the query in other ways",
            hint="use centroid, anchor, fused or cosine where an index is needed",
        )

    @abstractmethod
    def _score(self, queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        """Scores [q, g] of float64 queries and items, zeros at hidden entries."""

    def _check(self, queries: Tensor, items: Tensor, mask: Tensor) -> None:
        fits = queries.ndim == 2 and items.ndim == 3 and items.shape[:2] == mask.shape and items.shape[2] == queries.shape[1]
        if not fits or items.shape[1] != len(self.modalities):
            raise CalmrlError(
                f"scorer '{self.name}' needs queries [q, d], items [g, {len(self.modalities)}, d] and mask [g, {len(self.modalities)}], "
                f"got {list(queries.shape)}, {list(items.shape)} and {list(mask.shape)}"
            )


class VectorScorer(Scorer):
    """A scorer whose items are single vectors: the score is their inner product with the query."""

    items_are_vectors: ClassVar[bool] = True

    def vectors(self, items: Float[Tensor, "g k d"], mask: Bool[Tensor, "g k"]) -> Float[Tensor, "g d"]:
        """One vector per item, in the dtype of `items` (float32 at least); zeros for items that `serves` leaves out."""
        wide = items if items.dtype == torch.float64 else items.float()
        return self._vectors(wide.masked_fill(~(mask & self.serves(mask).unsqueeze(1)).unsqueeze(-1), 0.0), mask)

    @abstractmethod
    def _vectors(self, items: Tensor, mask: Tensor) -> Tensor: ...

    def _score(self, queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        return queries @ self._vectors(items, mask).T


def make_scorer(
    name: str, query: str, modalities: Sequence[str], parts: Mapping[str, Any] | None = None, **options: Any
) -> Scorer:
    """The scorer called `name`, or `name:modality` (as cosine:vision), for queries of modality `query`.

    `parts` are those of a model, of which the scorer gets what it `needs`.

    Raises CalmrlError for an unknown scorer, modality or option.

    >>> from calmrl_lab.scorers.base import make_scorer
    >>> make_scorer("centroid", "text", ("vision", "audio")).name
    'centroid'
    """
    from calmrl_lab.scorers import scorers

    kind, _, argument = name.partition(":")
    if argument:
        options["modality"] = argument
    needs = scorers.get(kind).needs
    options |= {need: value for need, value in (parts or {}).items() if need in needs}
    made: Scorer = scorers.create(kind, query, modalities, **options)
    return made
