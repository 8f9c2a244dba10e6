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
    """

    name = "anchor"

    def _vectors(self, items: Tensor, mask: Tensor) -> Tensor:
        return spectrum(items, mask).anchor
