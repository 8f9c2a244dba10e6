"""Cosine of the query with one modality of the item."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known
from calmrl_lab.scorers import scorers
from calmrl_lab.scorers.base import VectorScorer


@scorers.register("cosine")
class Cosine(VectorScorer):
    """Cosine of the query with one modality of the item; items that do not show it rank last.

    `modality` may be left out where items have only one.

    >>> import torch
    >>> from calmrl_lab.scorers.base import make_scorer
    >>> items = torch.nn.functional.normalize(torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> scorer = make_scorer("cosine:vision", "text", ("vision", "audio"))
    >>> scorer.score(items[:, 0], items, torch.ones(3, 2, dtype=torch.bool)).shape
    torch.Size([3, 3])
    """

    name = "cosine"

    def __init__(self, query: str, modalities: Sequence[str], modality: str | None = None) -> None:
        super().__init__(query, modalities)
        if modality is None and len(self.modalities) > 1:
            raise CalmrlError(
                f"scorer 'cosine' compares with one modality, and items have {len(self.modalities)}",
                hint=f"for example cosine:{self.modalities[0]}",
            )
        self.modality = modality or self.modalities[0]
        self._index = known(self.modality, self.modalities, "scorer 'cosine': items have no modality")

    def serves(self, mask: Tensor) -> Tensor:
        return mask[:, self._index]

    def _vectors(self, items: Tensor, mask: Tensor) -> Tensor:
        # Observed embeddings have unit norm already, imputed ones do not.
        return functional.normalize(items[:, self._index], dim=1)
