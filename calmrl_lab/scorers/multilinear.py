"""The multilinear inner product of a query and everything that an item shows: what Symile trains."""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_lab.scorers import scorers
from calmrl_lab.scorers.base import VectorScorer


@scorers.register("multilinear")
class Multilinear(VectorScorer):
    """Sum over coordinates of the product of the query and all embeddings that the item shows (Symile, Saporta et al., NeurIPS 2024).

    With one modality shown it is the cosine. Each factor after the second is multiplied by sqrt(d), as in the objective `symile`, so that items that show
    fewer modalities are comparable. An item is one vector, the product of its embeddings.

    >>> import torch
    >>> from calmrl_lab.scorers.base import make_scorer
    >>> items = torch.nn.functional.normalize(torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> scorer = make_scorer("multilinear", "text", ("vision", "audio"))
    >>> scorer.score(items[:, 0], items, torch.ones(3, 2, dtype=torch.bool)).shape
    torch.Size([3, 3])
    """

    name = "multilinear"

    def _vectors(self, items: Tensor, mask: Tensor) -> Tensor:
        factors = torch.where(mask.unsqueeze(2), items * items.shape[2] ** 0.5, 1.0)
        # One factor too many was scaled; an item that shows nothing stays zero.
        return factors.prod(dim=1) * mask.any(dim=1, keepdim=True) * items.shape[2] ** -0.5
