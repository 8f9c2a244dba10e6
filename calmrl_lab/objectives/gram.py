"""GRAM: the volume that a text and the other modalities of an item span together."""

from __future__ import annotations

from torch import Tensor

from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.base import not_negative
from calmrl_lab.objectives.terms.query_to_item import CrossObjective, Sides
from calmrl_lab.objectives.terms.volume import volumes


@objectives.register("gram")
class GRAM(CrossObjective):
    """The volume that a text and the other modalities of an item span (Cicchetti et al., ICLR 2025).

    Score of text i and item j = -sqrt(det GRAM(t_i, others of j)). Released: temperature 0.07, learned; label smoothing 0.1; matching weight `alpha` 0.1 (here a substitute head on the normalised sum of the
    other modalities, see `MatchingHead`). `epsilon` is added under the root, whose slope at zero volume is infinite otherwise.
    Mask: volumes are those of the observed modalities. More modalities can only shrink a volume, so in a batch of mixed patterns items that
    show more are favoured; with one other modality it is sqrt(1 - cos^2). Blind to sign: text and -text score alike.

    >>> import torch
    >>> from calmrl_lab.objectives import GRAM
    >>> embeddings = torch.nn.functional.normalize(torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) < 0.8
    >>> objective = GRAM(("vision", "audio", "caption"), dim=16)
    >>> bool(objective(embeddings, mask)["loss"].isfinite())
    True
    """

    name = "gram"
    scorer = "volume"

    def __init__(
        self,
        modalities: tuple[str, ...],
        dim: int,
        query: str | None = None,
        temperature: float = 0.07,
        smoothing: float = 0.1,
        alpha: float = 0.1,
        epsilon: float = 1e-8,
        seed: int = 0,
        negative_temperature: float | None = None,
        detach_gathered: bool = False,
    ) -> None:
        super().__init__(modalities, dim, query, temperature, smoothing, alpha, seed, negative_temperature, detach_gathered)
        self.epsilon = not_negative(self.name, "epsilon", epsilon)

    def scores(self, sides: Sides, context: Tensor) -> Tensor:
        return -volumes(sides.queries, sides.candidates, sides.shown, self.epsilon, paired=True)
