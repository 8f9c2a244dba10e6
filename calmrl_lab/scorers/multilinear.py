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
    """

    name = "multilinear"

    def _vectors(self, items: Tensor, mask: Tensor) -> Tensor:
        factors = torch.where(mask.unsqueeze(2), items * items.shape[2] ** 0.5, 1.0)
        # One factor too many was scaled; an item that shows nothing stays zero.
        return factors.prod(dim=1) * mask.any(dim=1, keepdim=True) * items.shape[2] ** -0.5
