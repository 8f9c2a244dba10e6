"""Volume (GRAM) and triangle area (TRIANGLE) of the shape that a query and an item's embeddings span."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.scorers import scorers
from calmrl_lab.scorers.base import Scorer

# Below this a squared volume is rounding error of float64, and the vectors are taken as dependent.
_FLAT = 1e-13


@scorers.register("volume")
class Volume(Scorer):
    """Minus the volume of the parallelotope of query and observed embeddings (GRAM).

    Missing modalities count as axes orthogonal to everything, which makes the volume that of the observed ones alone; zeros in their place
    would make every incomplete item a perfect match. More modalities can only shrink a volume, so items that show more are
    favoured; `per_modality` ranks by the volume's |observed|-th root instead. Blind to sign: t and -t score alike.

    >>> import torch
    >>> from calmrl_lab.scorers.base import make_scorer
    >>> items = torch.nn.functional.normalize(torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> scorer = make_scorer("volume", "text", ("vision", "audio"))
    >>> scorer.score(items[:, 0], items, torch.ones(3, 2, dtype=torch.bool)).shape
    torch.Size([3, 3])
    """

    name = "volume"

    def __init__(self, query: str, modalities: Sequence[str], per_modality: bool = False) -> None:
        super().__init__(query, modalities)
        self.per_modality = bool(per_modality)

    def _score(self, queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        # det [1 c'; c G] = prod(l) - sum_j c~_j^2 prod_{i != j} l_i with G = Q diag(l) Q' and c~ = Q'c: no division, so that
        # collinear embeddings (imputed copies) need no care.
        gram = items @ items.mT + torch.diag_embed((~mask).to(items.dtype))
        values, vectors = torch.linalg.eigh(gram)
        values = values.clamp_min(0.0)
        rotated = vectors.mT @ items
        norms = queries.square().sum(dim=1, keepdim=True)
        square = norms * values.prod(dim=1)
        for j in range(values.shape[1]):
            others = torch.cat([values[:, :j], values[:, j + 1 :]], dim=1).prod(dim=1)
            square -= (queries @ rotated[:, j].T).square_() * others
        volume = square.masked_fill(square < _FLAT, 0.0).sqrt()
        if self.per_modality:
            volume = volume.pow(1 / mask.sum(dim=1).clamp_min(1).to(volume.dtype))
        return -volume


@scorers.register("area")
class Area(Scorer):
    """Minus the area of the triangle of query and both embeddings of an item (TRIANGLE); items have exactly two modalities.

    A missing corner stands at a unit vector orthogonal to everything, which ranks items by the distance of query and observed
    embedding; a triangle of two corners would have no area and match everything. Ranks are those of the squared area in TRIANGLE's code.

    >>> import torch
    >>> from calmrl_lab.scorers.base import make_scorer
    >>> items = torch.nn.functional.normalize(torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> scorer = make_scorer("area", "text", ("vision", "audio"))
    >>> scorer.score(items[:, 0], items, torch.ones(3, 2, dtype=torch.bool)).shape
    torch.Size([3, 3])
    """

    name = "area"

    def __init__(self, query: str, modalities: Sequence[str]) -> None:
        super().__init__(query, modalities)
        if len(self.modalities) != 2:
            raise CalmrlError(
                f"scorer 'area' needs items of exactly two modalities, got {len(self.modalities)}: {', '.join(self.modalities)}",
                hint="use volume, or name two modalities",
            )

    def _score(self, queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        norms = queries.square().sum(dim=1, keepdim=True)
        lengths = items.square().sum(dim=2).masked_fill(~mask, 1.0)
        first, second = queries @ items[:, 0].T, queries @ items[:, 1].T
        one = norms + lengths[:, 0] - 2 * first
        two = norms + lengths[:, 1] - 2 * second
        between = norms - first - second + (items[:, 0] * items[:, 1]).sum(dim=1)
        square = one * two - between.square()
        return -0.5 * square.masked_fill(square < _FLAT, 0.0).sqrt()
