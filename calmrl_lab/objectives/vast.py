"""VAST: a text against one fused vector of the other modalities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.base import modality_index, same_group, skipped
from calmrl_lab.objectives.terms.fusion import MOST, ConcatHeads
from calmrl_lab.objectives.terms.query_to_item import CrossObjective, Sides


@objectives.register("vast")
class VAST(CrossObjective):
    """A text against the fusion of everything else an item shows (Chen et al., NeurIPS 2023).

    Score = <text i, normalize(linear map of the concatenated others of item j)>. Released: one head for each combination of modalities (v+a, v+s, v+a+s, ...), none for a single one; temperature 0.07, learned; label
    smoothing 0.1; matching weight `alpha` 0.1 (here a substitute head, see `MatchingHead`). Its captioning loss needs tokens and is not here;
    its heads see pooled features, these see embeddings. Mask: an item is fused by the head of exactly the combination it shows.

    VAST's code trains the mean over several combinations of every item (its subtasks tv, tva, tvas): `subtasks=["vision", "vision+audio",
    "vision+audio+subtitle"]` does. In a subtask an item is a candidate with exactly these modalities, and none if it does not show all of them. Default:
    one contrast, each item with everything that it shows.

    >>> import torch
    >>> from calmrl_lab.objectives import VAST
    >>> embeddings = torch.nn.functional.normalize(torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) < 0.8
    >>> objective = VAST(("vision", "audio", "caption"), dim=16)
    >>> bool(objective(embeddings, mask)["loss"].isfinite())
    True
    """

    name = "vast"
    scorer = "fused"
    signs_matter = True
    aligned_option = "subtasks"

    def __init__(
        self,
        modalities: tuple[str, ...],
        dim: int,
        query: str | None = None,
        temperature: float = 0.07,
        smoothing: float = 0.1,
        alpha: float = 0.1,
        seed: int = 0,
        negative_temperature: float | None = None,
        detach_gathered: bool = False,
        subtasks: Sequence[str] | None = None,
    ) -> None:
        super().__init__(modalities, dim, query, temperature, smoothing, alpha, seed, negative_temperature, detach_gathered)
        if len(self.others) > MOST:
            raise CalmrlError(
                f"objective 'vast' has a head for each combination of modalities: at most {MOST + 1} modalities, got {len(modalities)}"
            )
        self.fusion = ConcatHeads(len(self.others), dim)
        self.subtasks = None if subtasks is None else [self._places(subtask) for subtask in subtasks]

    def _places(self, subtask: str) -> list[int]:
        """Places among the others of the modalities that `subtask` names, joined by +."""
        found = [modality_index(self.name, self.modalities, name, ()) for name in subtask.split("+")]
        if self.query in found:
            raise CalmrlError(f"objective 'vast': subtask '{subtask}' names the query '{self.modalities[self.query]}'")
        return [self.others.index(index) for index in found]

    @property
    def aligned(self) -> tuple[str, ...]:
        taken = range(len(self.others)) if self.subtasks is None else {place for places in self.subtasks for place in places}
        return tuple(self.modalities[index] for index in sorted([self.query, *(self.others[place] for place in taken)]))

    def terms(self, embeddings: Tensor, mask: Tensor, imputed: Tensor | None, groups: Tensor | None) -> dict[str, Tensor]:
        if self.subtasks is None:
            return super().terms(embeddings, mask, imputed, groups)
        sides, same = self.sides(embeddings, mask), same_group(groups)
        used = torch.zeros_like(sides.has_query)
        sums: dict[str, Tensor] = {}
        counted = torch.zeros((), dtype=sides.queries.dtype, device=mask.device)
        for places in self.subtasks:
            belongs = torch.zeros_like(sides.shown)
            belongs[:, places] = sides.shown[:, places].all(dim=1, keepdim=True)
            found, asked = self.terms_of(sides._replace(shown=belongs), same)
            valid = asked.any()
            used, counted = used | asked, counted + valid
            sums = {name: sums.get(name, 0.0) + torch.where(valid, term, 0.0) for name, term in found.items()}
        means = {name: total / counted.clamp_min(1) for name, total in sums.items()}
        return {**means, "temperature": 1 / self.scale().detach(), "skipped": skipped(used, means["loss"])}

    def scores(self, sides: Sides, context: Tensor) -> Tensor:
        return sides.queries @ context.mT

    def context(self, sides: Sides) -> Tensor:
        return self.fused(sides.candidates, sides.shown)

    def fused(self, candidates: Float[Tensor, "n m d"], shown: Bool[Tensor, "n m"]) -> Float[Tensor, "n d"]:
        """One unit vector per item from what it shows of the modalities other than the query, in their order; zero where it shows none."""
        fused: Tensor = self.fusion(candidates.masked_fill(~shown.unsqueeze(-1), 0.0), shown)
        return fused
