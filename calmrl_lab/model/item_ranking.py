"""Validation by whole items: queries of one modality ranked among items as a scorer sees them, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.errors import CalmrlError
from calmrl_lab.model.encode import stack
from calmrl_lab.model.selection import mean_over_directions
from calmrl_lab.registry import nearest
from calmrl_lab.scorers import scorers
from calmrl_lab.scorers.base import Scorer, make_scorer

# Parts that a model has while it trains.
_AT_HAND = ("objective",)


def scorers_of_items() -> list[str]:
    """Scorers that validation can rank by: those of whole items that need nothing but embeddings and the objective."""
    return [name for name in scorers.names() if name != "cosine" and set(scorers.get(name).needs) <= set(_AT_HAND)]


@dataclass(frozen=True)
class ItemRanking:
    """How well queries find their items, and items their queries, by one scorer.

    `sides` are (place of the query's modality, places of the modalities that items are seen by, scorer). Objectives that train queries of one
    modality against others (`query` and `others`) are ranked in these terms; for any other, every modality is the query once, among items that are
    all the rest.
    """

    sides: tuple[tuple[int, tuple[int, ...], Scorer], ...]

    @classmethod
    def of(cls, scorer: str, modalities: Sequence[str], objective: Any = None) -> ItemRanking:
        """Raises CalmrlError for a scorer that is unknown, that needs what a model in training lacks, or that cannot see these modalities."""
        known = scorers_of_items()
        if scorer not in known:
            raise CalmrlError(
                f"select_by: validation cannot rank by '{scorer}'{nearest(scorer, known)}",
                hint=f"use auto, similarity, cosine, or one of: {', '.join(known)}",
            )
        everything = range(len(modalities))
        asking = [objective.query] if hasattr(objective, "query") else everything
        sides = []
        for query in asking:
            others = objective.others if hasattr(objective, "query") else [m for m in everything if m != query]
            names = [modalities[index] for index in others]
            sides.append((query, tuple(others), make_scorer(scorer, modalities[query], names, {"objective": objective})))
        return cls(tuple(sides))

    @torch.no_grad()
    def score(self, embeddings: Sequence[Float[Tensor, "n d"]], table: FeatureTable) -> dict[str, float]:
        """`mean_over_directions` of queries among items and of items among queries; `embeddings`, one tensor per modality, are those of `table`.

        Each direction ranks among the items that show the query's modality and enough for the scorer; nothing is hidden.
        """
        return mean_over_directions(self._scores(stack(embeddings), table))

    def _scores(self, items: Float[Tensor, "n k d"], table: FeatureTable) -> Iterator[Float[Tensor, "n n"]]:
        owned = table.natural_mask()
        for query, others, scorer in self.sides:
            mask = owned[:, others]
            able = owned[:, query] & scorer.serves(mask)
            if int(able.sum()) > 1:
                scores = scorer.score(items[able, query], items[able][:, others], mask[able])
                yield scores
                yield scores.T
