"""Contrast of one modality (usually the text) as query with the others of an item together: the base of VAST, GRAM, TRIANGLE and SCALAR."""

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
    flag,
    modality_index,
    not_negative,
    positive,
    same_group,
    share,
    skipped,
    without_hidden,
)
from calmrl_lab.objectives.terms.contrastive import symmetric_cross_entropy, two_way_cross_entropy
from calmrl_lab.objectives.terms.matching import MatchingHead, matching_loss


class Sides(NamedTuple):
    """A batch as queries and candidate items; hidden entries are zero."""

    queries: Float[Tensor, "b d"]
    has_query: Bool[Tensor, " b"]
    candidates: Float[Tensor, "b m d"]
    shown: Bool[Tensor, "b m"]


class CrossObjective(Objective):
    """contrast + alpha * matching, where contrast is symmetric cross-entropy of score / temperature between all queries and all items.

    The query of item i is its embedding of modality `query`, the candidate of item j whatever else it shows. An item without the query modality
    is still a candidate, one without anything else still a query; neither has a target then (`skipped`). Subclasses say what the score is.
    Hard negatives of matching are drawn by softmax(score / `negative_temperature`), as released; None: the temperature of the contrast.
    `detach_gathered` stops the gradient of the contrast at the candidates of either direction, as released code does that gathers them from
    several devices without gradient; the value is the same.
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
        negative_temperature: float | None = None,
        detach_gathered: bool = False,
        fixed_temperature: bool = False,
    ) -> None:
        super().__init__(modalities, dim)
        self.query = modality_index(self.name, modalities, query, TEXT)
        self.others = [index for index in range(len(modalities)) if index != self.query]
        start = positive(self.name, "temperature", temperature)
        self.scale = LearnedTemperature(start, fixed=fixed_temperature, direct=True)
        self.smoothing = share(self.name, "smoothing", smoothing)
        self.alpha = not_negative(self.name, "alpha", alpha)
        self.negative_temperature: float | None = None
        if negative_temperature is not None:
            self.negative_temperature = positive(self.name, "negative_temperature", negative_temperature)
        self.detach_gathered = flag(self.name, "detach_gathered", detach_gathered)
        self.generator = torch.Generator().manual_seed(seed)
        if self.alpha:
            self.matching = MatchingHead(dim, seed)

    @property
    def aligned(self) -> tuple[str, ...]:
        return tuple(self.modalities[index] for index in sorted([self.query, *self.others]))

    @abstractmethod
    def scores(self, sides: Sides, context: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
        """Score of candidate item j for query i; higher is better. Rows and columns without their side may hold any finite number.

        `context` is what `context` returned for these sides.
        """

    def context(self, sides: Sides) -> Float[Tensor, "b d"]:
        """One vector of an item's other modalities, their normalised sum, for the matching term."""
        return functional.normalize(sides.candidates.sum(dim=1), dim=1, eps=1e-12)

    def has_candidate(self, sides: Sides) -> Bool[Tensor, " b"]:
        """Which items can be candidates at all."""
        return sides.shown.any(dim=1)

    def sides(self, embeddings: Tensor, mask: Tensor) -> Sides:
        shown = without_hidden(embeddings, mask)
        # Slices and a stack: indexing by a list would send the list to the device in every step.
        candidates = torch.stack([shown[:, index] for index in self.others], dim=1)
        visible = torch.stack([mask[:, index] for index in self.others], dim=1)
        return Sides(shown[:, self.query], mask[:, self.query], candidates, visible)

    def terms(self, embeddings: Tensor, mask: Tensor, imputed: Tensor | None, groups: Tensor | None) -> dict[str, Tensor]:
        """`loss`, `contrast`, `temperature`, `skipped`, `matching` if alpha > 0, and the terms a subclass adds."""
        terms, used = self.terms_of(self.sides(embeddings, mask), same_group(groups))
        return {**terms, "skipped": skipped(used, terms["loss"])}

    def terms_of(self, sides: Sides, same: Tensor | None) -> tuple[dict[str, Tensor], Bool[Tensor, " b"]]:
        """`terms` of these sides but `skipped`, and which items the contrast used."""
        scale = self.scale().to(sides.queries.dtype)
        has_candidate = self.has_candidate(sides)
        context = self.context(sides)
        scores = self.scores(sides, context)
        if self.detach_gathered:
            there = self.scores(sides._replace(candidates=sides.candidates.detach()), context.detach())
            back = self.scores(sides._replace(queries=sides.queries.detach()), context)
            contrast, used = two_way_cross_entropy(
                scale * there, scale * back.mT, sides.has_query, has_candidate, self.smoothing, same
            )
        else:
            contrast, used = symmetric_cross_entropy(scale * scores, sides.has_query, has_candidate, self.smoothing, same)
        terms = {"contrast": contrast, "temperature": 1 / scale.detach()}
        loss = contrast
        for name, (weight, term) in self.extras(sides, context, scores, same).items():
            terms[name], loss = term, loss + weight * term
        if self.alpha:
            able, generator = sides.has_query & has_candidate, cast(torch.Generator, self.generator)
            sharpness = scale if self.negative_temperature is None else 1 / self.negative_temperature
            logits = (sharpness * scores).detach()
            terms["matching"] = matching_loss(self.matching, sides.queries, context, able, generator, logits, same)
            loss = loss + self.alpha * terms["matching"]
        return {"loss": loss, **terms}, used

    def extras(self, sides: Sides, context: Tensor, scores: Tensor, same: Tensor | None) -> dict[str, tuple[float, Tensor]]:
        """Further terms by name: (weight in the loss, value)."""
        return {}
