"""One modality asks (usually the text), the others of an item answer together: what VAST, GRAM, TRIANGLE and SCALAR have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from calmrl_lab.objectives.terms.base import (
    TEXT,
    LearnedTemperature,
    Objective,
    modality_index,
    not_negative,
    positive,
    same_group,
    share,
    skipped,
    without_hidden,
)
from calmrl_lab.objectives.terms.contrastive import symmetric_cross_entropy
from calmrl_lab.objectives.terms.matching import MatchingHead, matching_loss


class Sides(NamedTuple):
    """A batch as queries and what answers them; hidden entries are zero."""

    queries: Float[Tensor, "b d"]
    asks: Bool[Tensor, " b"]
    answers: Float[Tensor, "b m d"]
    shown: Bool[Tensor, "b m"]


class CrossObjective(Objective):
    """contrast + alpha * matching, where contrast is symmetric cross-entropy of score / temperature between all queries and all items.

    Item i asks with its embedding of modality `query`; item j answers with whatever else it shows. An item without the query modality still
    answers, one without anything else still asks; neither has a target then (`skipped`). Subclasses say what the score is.
    """

    def __init__(
        self,
        modalities: tuple[str, ...],
        dim: int,
        query: str | None,
        temperature: float,
        smoothing: float,
        alpha: float,
        seed: int,
        fixed_temperature: bool = False,
    ) -> None:
        super().__init__(modalities, dim)
        self.query = modality_index(self.name, modalities, query, TEXT)
        self.others = [index for index in range(len(modalities)) if index != self.query]
        start = positive(self.name, "temperature", temperature)
        self.scale = LearnedTemperature(start, fixed=fixed_temperature, direct=True)
        self.smoothing = share(self.name, "smoothing", smoothing)
        self.alpha = not_negative(self.name, "alpha", alpha)
        self.generator = torch.Generator().manual_seed(seed)
        if self.alpha:
            self.matching = MatchingHead(dim, seed)

    @abstractmethod
    def scores(self, sides: Sides, context: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
        """How well item j answers query i; higher is better. Rows and columns without their side may hold any finite number.

        `context` is what `context` returned for these sides.
        """

    def context(self, sides: Sides) -> Float[Tensor, "b d"]:
        """One vector of an item's answers: their normalised sum. Matching sees this one."""
        return functional.normalize(sides.answers.sum(dim=1), dim=1, eps=1e-12)

    def answering(self, sides: Sides) -> Bool[Tensor, " b"]:
        """Which items can answer at all."""
        return sides.shown.any(dim=1)

    def sides(self, embeddings: Tensor, mask: Tensor) -> Sides:
        shown = without_hidden(embeddings, mask)
        # Slices and a stack: indexing by a list would send the list to the device in every step.
        answers = torch.stack([shown[:, index] for index in self.others], dim=1)
        visible = torch.stack([mask[:, index] for index in self.others], dim=1)
        return Sides(shown[:, self.query], mask[:, self.query], answers, visible)

    def terms(self, embeddings: Tensor, mask: Tensor, imputed: Tensor | None, groups: Tensor | None) -> dict[str, Tensor]:
        """`loss`, `contrast`, `temperature`, `skipped`, `matching` if alpha > 0, and the terms a subclass adds."""
        sides = self.sides(embeddings, mask)
        same = same_group(groups)
        scale = self.scale().to(embeddings.dtype)
        answering = self.answering(sides)
        context = self.context(sides)
        scores = self.scores(sides, context)
        contrast, used = symmetric_cross_entropy(scale * scores, sides.asks, answering, self.smoothing, same)
        terms = {"contrast": contrast, "temperature": 1 / scale.detach(), "skipped": skipped(used, contrast)}
        loss = contrast
        for name, (weight, term) in self.extras(sides, context, scores, same).items():
            terms[name], loss = term, loss + weight * term
        if self.alpha:
            able, generator = sides.asks & answering, cast(torch.Generator, self.generator)
            terms["matching"] = matching_loss(self.matching, sides.queries, context, able, generator, same)
            loss = loss + self.alpha * terms["matching"]
        return {"loss": loss, **terms}

    def extras(self, sides: Sides, context: Tensor, scores: Tensor, same: Tensor | None) -> dict[str, tuple[float, Tensor]]:
        """Further terms by name: (weight in the loss, value)."""
        return {}
