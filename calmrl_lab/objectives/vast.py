"""VAST: a text against one fused vector of the other modalities."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.fusion import MOST, ConcatHeads
from calmrl_lab.objectives.terms.query_to_item import CrossObjective, Sides


@objectives.register("vast")
class Vast(CrossObjective):
    """A text against the fusion of everything else an item shows (Chen et al., NeurIPS 2023).

    Score = <text i, normalize(linear map of the concatenated others of item j)>. Released: one head for each combination of modalities (v+a, v+s, v+a+s, ...), none for a single one; temperature 0.07, learned; label
    smoothing 0.1; matching weight `alpha` 0.1 (here a substitute head, see `_matching`). Its captioning loss needs tokens and is not here;
    its heads see pooled features, these see embeddings. Mask: an item is fused by the head of exactly the combination it shows.
    """

    name = "vast"

    def __init__(
        self,
        modalities: tuple[str, ...],
        dim: int,
        query: str | None = None,
        temperature: float = 0.07,
        smoothing: float = 0.1,
        alpha: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(modalities, dim, query, temperature, smoothing, alpha, seed)
        if len(self.others) > MOST:
            raise CalmrlError(
                f"objective 'vast' has a head for each combination of modalities: at most {MOST + 1} modalities, got {len(modalities)}"
            )
        self.fusion = ConcatHeads(len(self.others), dim)

    def scores(self, sides: Sides, context: Tensor) -> Tensor:
        return sides.queries @ context.mT

    def context(self, sides: Sides) -> Tensor:
        return self.fused(sides.answers, sides.shown)

    def fused(self, answers: Float[Tensor, "n m d"], shown: Bool[Tensor, "n m"]) -> Float[Tensor, "n d"]:
        """One unit vector an item from what it shows of the modalities other than the query, in their order; zero where it shows none."""
        fused: Tensor = self.fusion(answers.masked_fill(~shown.unsqueeze(-1), 0.0), shown)
        return fused
