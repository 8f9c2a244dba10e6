"""Cosine of the query with the mean of what an item shows, plain or weighted by the query."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from calmrl_lab.errors import CalmrlError
from calmrl_lab.scorers import scorers
from calmrl_lab.scorers.base import Scorer, VectorScorer


@scorers.register("centroid")
class Centroid(VectorScorer):
    """Cosine of the query with the mean of the item's observed embeddings (also called sum fusion).

    Embeddings that cancel out exactly score 0.

    >>> import torch
    >>> from calmrl_lab.scorers.base import make_scorer
    >>> items = torch.nn.functional.normalize(torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> scorer = make_scorer("centroid", "text", ("vision", "audio"))
    >>> scorer.score(items[:, 0], items, torch.ones(3, 2, dtype=torch.bool)).shape
    torch.Size([3, 3])
    """

    name = "centroid"

    def _vectors(self, items: Tensor, mask: Tensor) -> Tensor:
        return functional.normalize(items.sum(dim=1), dim=1)


@scorers.register("query-centroid")
class QueryCentroid(Scorer):
    """Cosine of the query with the mean of the item's observed embeddings, each weighted by its agreement with the query.

    Weights are softmax(<t, z_m> / temperature) over the observed modalities (SCALAR; its temperature is the default). Computed from
    cosines and the k x k Gram matrix of the item, so no weighted mean is ever built.

    >>> import torch
    >>> from calmrl_lab.scorers.base import make_scorer
    >>> items = torch.nn.functional.normalize(torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> scorer = make_scorer("query-centroid", "text", ("vision", "audio"))
    >>> scorer.score(items[:, 0], items, torch.ones(3, 2, dtype=torch.bool)).shape
    torch.Size([3, 3])
    """

    name = "query-centroid"

    def __init__(self, query: str, modalities: Sequence[str], temperature: float = 0.1) -> None:
        super().__init__(query, modalities)
        if not temperature > 0:
            raise CalmrlError(f"scorer 'query-centroid': temperature is {temperature}, expected a number above 0")
        self.temperature = float(temperature)

    def _score(self, queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        cosines = torch.stack([queries @ column.T for column in items.unbind(dim=1)])  # [k, q, g]
        # An item that shows nothing gets equal weights here; its score is replaced by the caller.
        hidden = (~mask & mask.any(dim=1, keepdim=True)).T.unsqueeze(1)
        weights = (cosines / self.temperature).masked_fill(hidden, -torch.inf).softmax(dim=0)
        gram = items @ items.mT
        square = torch.zeros_like(cosines[0])
        for i in range(len(cosines)):
            for j in range(i, len(cosines)):
                square += (1 if i == j else 2) * weights[i] * weights[j] * gram[:, i, j]
        return (weights * cosines).sum(dim=0) / square.clamp_min(1e-24).sqrt()
