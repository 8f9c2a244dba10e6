"""SCALAR: a text against the centroid of an item's modalities, weighted by their agreement with that text."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.base import not_negative, positive
from calmrl_lab.objectives.terms.query_to_item import CrossObjective, Sides
from calmrl_lab.runtime.devices import send


@objectives.register("scalar")
class SCALAR(CrossObjective):
    """A text against the centroid of an item's modalities, each weighted by its agreement with that text (SCALAR).

    Score = cosine of text i and mu = sum_m w_m z_m of item j, w = softmax(<text i, z_m> / 0.1) over what item j shows.
    loss = contrast + consistency + 0.1 uniformity + 0.1 matching, with its temperature 0.07, fixed. consistency: an item is to be found alike
    with one of its modalities hidden: KL divergence of the softmax over items with everything shown (no gradient) from that
    with one random other modality less, for items that show two or more. uniformity: log mean exp(-2 ||x - y||^2) within each modality
    (Wang and Isola 2020), mean over modalities with two items. Its semantic term is not described well enough to be rebuilt and is left out, and
    matching is a substitute (see `MatchingHead`). Mask: weights are spread over observed modalities only; nothing is imputed.

    >>> import torch
    >>> from calmrl_lab.objectives import SCALAR
    >>> embeddings = torch.nn.functional.normalize(torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) < 0.8
    >>> objective = SCALAR(("vision", "audio", "caption"), dim=16)
    >>> bool(objective(embeddings, mask)["loss"].isfinite())
    True
    """

    name = "scalar"
    scorer = "query-centroid"

    def __init__(
        self,
        modalities: tuple[str, ...],
        dim: int,
        query: str | None = None,
        temperature: float = 0.07,
        weight_temperature: float = 0.1,
        consistency: float = 1.0,
        uniformity: float = 0.1,
        alpha: float = 0.1,
        seed: int = 0,
        negative_temperature: float | None = None,
    ) -> None:
        super().__init__(modalities, dim, query, temperature, 0.0, alpha, seed, negative_temperature, fixed_temperature=True)
        self.weight_temperature = positive(self.name, "weight_temperature", weight_temperature)
        self.consistency = not_negative(self.name, "consistency", consistency)
        self.uniformity = not_negative(self.name, "uniformity", uniformity)

    def scores(self, sides: Sides, context: Tensor) -> Tensor:
        return weighted_centroid_cosines(sides.queries, sides.candidates, sides.shown, self.weight_temperature)

    def extras(self, sides: Sides, context: Tensor, scores: Tensor, same: Tensor | None) -> dict[str, tuple[float, Tensor]]:
        """`consistency` and `uniformity`, where their weights are above 0."""
        terms = {}
        if self.consistency:
            terms["consistency"] = (self.consistency, self._consistency(sides, context, scores))
        if self.uniformity:
            everything = torch.cat([sides.queries.unsqueeze(1), sides.candidates], dim=1)
            shown = torch.cat([sides.has_query.unsqueeze(1), sides.shown], dim=1)
            terms["uniformity"] = (self.uniformity, spread(everything, shown, same))
        return terms

    def _consistency(self, sides: Sides, context: Tensor, scores: Tensor) -> Tensor:
        able = sides.shown.sum(dim=1) >= 2
        drawn = torch.rand(sides.shown.shape, generator=cast(torch.Generator, self.generator))
        drawn = send(drawn, sides.shown.device).masked_fill(~sides.shown, -1.0)
        dropped = torch.zeros_like(sides.shown).scatter(1, drawn.argmax(dim=1, keepdim=True), True) & able.unsqueeze(1)
        fewer = self.scores(sides._replace(shown=sides.shown & ~dropped), context)
        scale = self.scale().to(scores.dtype)
        candidate = self.has_candidate(sides).unsqueeze(0)
        full = torch.log_softmax((scale * scores.detach()).masked_fill(~candidate, -1e9), dim=1)
        reduced = torch.log_softmax((scale * fewer).masked_fill(~candidate, -1e9), dim=1)
        divergence = (full.exp() * (full - reduced)).sum(dim=1)
        counted = sides.has_query & self.has_candidate(sides) & able.any()
        return torch.where(counted, divergence, 0.0).sum() / counted.sum().clamp_min(1)


def weighted_centroid_cosines(
    queries: Float[Tensor, "q d"], items: Float[Tensor, "n m d"], shown: Bool[Tensor, "n m"], temperature: float
) -> Float[Tensor, "q n"]:
    """<t, mu> / |mu| for every query and item, mu the query-weighted centroid of what the item shows; 0 where it shows nothing.

    Numerator and |mu|^2 = w'Gw come from cosines and the item's Gram matrix; no centroid is ever built.
    """
    cosines = torch.stack([queries @ vectors.mT for vectors in items.unbind(dim=1)], dim=2)
    # An item that shows nothing gets equal weights on zeros.
    hidden = ~shown & shown.any(dim=1, keepdim=True)
    weights = (cosines / temperature).masked_fill(hidden.unsqueeze(0), -torch.inf).softmax(dim=2)
    gram = items @ items.mT
    square = (torch.einsum("qnm,nml->qnl", weights, gram) * weights).sum(dim=2)
    return (weights * cosines).sum(dim=2) * (square + 1e-12).rsqrt()


def spread(vectors: Float[Tensor, "b k d"], shown: Bool[Tensor, "b k"], same: Bool[Tensor, "b b"] | None) -> Float[Tensor, ""]:
    """log mean exp(-2 ||x - y||^2) over pairs of items of different groups, within each modality; mean over modalities with a pair."""
    other = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device) if same is None else ~same
    total = vectors.sum() * 0.0
    counted = torch.zeros_like(total)
    for column, visible in zip(vectors.unbind(dim=1), shown.unbind(dim=1), strict=True):
        pair = visible.unsqueeze(0) & visible.unsqueeze(1) & other
        lengths = column.square().sum(dim=1)
        distances = lengths.unsqueeze(0) + lengths.unsqueeze(1) - 2 * column @ column.mT
        pairs = pair.sum()
        mean = torch.where(pair, (-2 * distances).exp(), 0.0).sum() / pairs.clamp_min(1)
        valid = pairs > 0
        total = total + torch.where(valid, torch.where(valid, mean, 1.0).log(), 0.0)
        counted = counted + valid
    return total / counted.clamp_min(1)
