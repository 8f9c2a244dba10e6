"""Cosine of the query with the anchor of an item."""

from __future__ import annotations

from torch import Tensor

from calmrl_lab.linalg.spectrum import spectrum
from calmrl_lab.scorers import scorers
from calmrl_lab.scorers.base import VectorScorer


@scorers.register("anchor")
class Anchor(VectorScorer):
    """Cosine of the query with the item's anchor, the leading left singular vector of what it shows, pointing with it.

    Over items whose gaps were filled by an imputer this is the calibrated anchor of CalMRL.

    >>> import torch
    >>> from calmrl_lab.scorers.base import make_scorer
    >>> items = torch.nn.functional.normalize(torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> scorer = make_scorer("anchor", "text", ("vision", "audio"))
    >>> scorer.score(items[:, 0], items, torch.ones(3, 2, dtype=torch.bool)).shape
    torch.Size([3, 3])
    """

    name = "anchor"

    def _vectors(self, items: Tensor, mask: Tensor) -> Tensor:
        return spectrum(items, mask).anchor
