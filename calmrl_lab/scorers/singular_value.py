"""The leading singular value of the set that a query and an item's embeddings form (PMRL)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.scorers import scorers
from calmrl_lab.scorers.base import Scorer

# Newton's method doubles its digits per step once it is close, and starts close.
_STEPS = 12


@scorers.register("singular-value")
class SingularValue(Scorer):
    """Leading singular value of the set of query and observed embeddings.

    It grows with the number of modalities shown, whatever they say; `share` ranks by its square over their number instead, the part
    of the set's energy that lies along its anchor. Blind to sign, as every function of squared cosines.

    >>> import torch
    >>> from calmrl_lab.scorers.base import make_scorer
    >>> items = torch.nn.functional.normalize(torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> scorer = make_scorer("singular-value", "text", ("vision", "audio"))
    >>> scorer.score(items[:, 0], items, torch.ones(3, 2, dtype=torch.bool)).shape
    torch.Size([3, 3])
    """

    name = "singular-value"

    def __init__(self, query: str, modalities: Sequence[str], share: bool = False) -> None:
        super().__init__(query, modalities)
        self.share = bool(share)

    def _score(self, queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(items @ items.mT)
        values = values.clamp_min(0.0)
        rotated = vectors.mT @ items
        squares = torch.stack([(queries @ column.T).square_() for column in rotated.unbind(dim=1)])  # [k, q, g]
        norms = queries.square().sum(dim=1, keepdim=True)
        leading = _leading_eigenvalue(norms, values, squares)
        return leading / (1 + mask.sum(dim=1)) if self.share else leading.sqrt()


def _leading_eigenvalue(
    corner: Float[Tensor, "q 1"], poles: Float[Tensor, "g k"], squares: Float[Tensor, "k q g"]
) -> Float[Tensor, "q g"]:
    """Largest eigenvalue of [corner c'; c diag(poles)], c^2 = squares: the last root of x - corner - sum_j c_j^2 / (x - pole_j).

    Right of the last pole that function rises and is concave, so Newton's method from the left never oversteps. It starts at the
    largest of the 2 x 2 submatrices' eigenvalues, which the root cannot fall below.
    """
    root = corner.expand_as(squares[0]).clone()
    for pole, square in zip(poles.T, squares, strict=True):
        half = (corner - pole) / 2
        torch.maximum(root, pole + half + (half.square() + square).sqrt(), out=root)
    least = root.clone()
    for _ in range(_STEPS):
        value, slope = root - corner, torch.ones_like(root)
        for pole, square in zip(poles.T, squares, strict=True):
            gap = root - pole
            # A pole without weight is none; where root and pole meet in rounding, its weight is rounding too.
            term = torch.where(gap > 1e-14, square / gap.clamp_min(1e-14), 0.0)
            value -= term
            slope += torch.where(gap > 1e-14, term / gap.clamp_min(1e-14), 0.0)
        # Where the query has no part in the leading direction the function has no pole there: the eigenvalue is the pole.
        root = torch.maximum(root - value / slope, least)
    return root
