"""Gated Symile: Symile's product with every factor turned towards a neutral direction as far as the candidate does not trust it."""

from __future__ import annotations

from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.base import (
    LearnedTemperature,
    Objective,
    not_negative,
    positive,
    same_group,
    skipped,
    whole,
    without_hidden,
)
from calmrl_lab.runtime.devices import send

# Released: sigmoid of this is the share of the gated embedding at the start.
_STRENGTH = -6.0
_COLDEST_GATE = 0.1


@objectives.register("gated-symile")
class GatedSymile(Objective):
    """Symile with a gate for each candidate (Rheude et al., arXiv 2604.05834): unreliable factors are turned towards a learned neutral direction.

    For each modality t: item i's other embeddings are gated by the candidate's embedding of t (`ModalityGate`), and the score is the multilinear inner
    product of that embedding and of the gated ones, times sqrt(d) for each factor after the first; cross-entropy of the item's own embedding of t
    against `negatives` drawn from other items ("all": against every other item); mean over t. A distillation term, weight 0.1, pulls embeddings to what the gate makes of them beside
    their own item. Released: temperature 0.07, learned; a NULL option by which a gate trusts nothing; a small share of the gated embedding at the start
    (0.25 %). Negatives are drawn at random, 128 as released.
    Mask: gates and products are over what item i shows; a candidate shows t. Items that show one modality take no part (`skipped`).

    >>> import torch
    >>> from calmrl_lab.objectives import GatedSymile
    >>> embeddings = torch.nn.functional.normalize(torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) < 0.8
    >>> objective = GatedSymile(("vision", "audio", "caption"), dim=16)
    >>> bool(objective(embeddings, mask)["loss"].isfinite())
    True
    """

    name = "gated-symile"
    scorer = "objective"
    signs_matter = True

    def __init__(
        self,
        modalities: tuple[str, ...],
        dim: int,
        negatives: int | Literal["all"] = 128,
        temperature: float = 0.07,
        distillation: float = 0.1,
        gate_temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(modalities, dim)
        self.negatives = negatives if negatives == "all" else whole(self.name, "negatives", negatives)
        self.distillation = not_negative(self.name, "distillation", distillation)
        self.scale = LearnedTemperature(positive(self.name, "temperature", temperature))
        self.gate = ModalityGate(len(modalities), dim, positive(self.name, "gate_temperature", gate_temperature), seed)
        self.generator = torch.Generator().manual_seed(seed)

    def terms(self, embeddings: Tensor, mask: Tensor, imputed: Tensor | None, groups: Tensor | None) -> dict[str, Tensor]:
        """`loss`, `contrast`, `distillation` (if its weight is above 0), `temperature`, `skipped`."""
        shown = without_hidden(embeddings, mask)
        scale, same = self.scale().to(shown.dtype), same_group(groups)
        contrast = distilled = shown.sum() * 0.0
        counted = torch.zeros_like(contrast)
        used = torch.zeros_like(mask[:, 0])
        for target in range(mask.shape[1]):
            candidates, exists = self._candidates(mask[:, target], same)
            others = mask.clone()
            others[:, target] = False
            with_target = mask[:, target] & others.any(dim=1)
            products = self.gate.products(target, shown[:, target], shown, others).mT.gather(1, candidates)
            logits = (scale * products).masked_fill(~exists, -torch.inf)
            per_item = torch.logsumexp(logits, dim=1) - logits[:, 0]
            valid = with_target.sum() > 1
            contrast = contrast + torch.where(valid & with_target, per_item, 0.0).sum() / with_target.sum().clamp_min(1)
            # What the gate of the item's own candidate makes of its embeddings is the teacher.
            gated = self.gate(target, shown[:, target], shown, others)
            distance = (shown - gated.detach()).square().mean(dim=2)
            apart = torch.where(others, distance, 0.0).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
            distilled = distilled + torch.where(valid & with_target, apart, 0.0).sum() / with_target.sum().clamp_min(1)
            counted, used = counted + valid, used | (with_target & valid)
        contrast, distilled = contrast / counted.clamp_min(1), distilled / counted.clamp_min(1)
        terms = {"contrast": contrast, "temperature": 1 / scale.detach(), "skipped": skipped(used, contrast)}
        if self.distillation:
            terms["distillation"] = distilled.detach()
        return {"loss": contrast + self.distillation * distilled, **terms}

    def _candidates(
        self, shows: Bool[Tensor, " b"], same: Bool[Tensor, "b b"] | None
    ) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """For each item itself and its negatives, all others or some drawn with replacement, and which of them are candidates at all."""
        count = len(shows)
        own = torch.arange(count, device=shows.device)
        akin = torch.eye(count, dtype=torch.bool, device=shows.device) if same is None else same
        itself = torch.ones_like(shows).unsqueeze(1)
        if self.negatives == "all":
            everything = own.expand(count, -1)
            return torch.cat([own.unsqueeze(1), everything], dim=1), torch.cat([itself, shows.unsqueeze(0) & ~akin], dim=1)
        edges = (shows.unsqueeze(0) & ~akin).double().cumsum(dim=1)
        uniform = 1 - torch.rand(count, self.negatives, generator=cast(torch.Generator, self.generator), dtype=torch.float64)
        drawn = torch.searchsorted(edges, send(uniform, shows.device) * edges[:, -1:]).clamp_max(count - 1)
        possible = (edges[:, -1:] > 0).expand(-1, self.negatives)
        return torch.cat([own.unsqueeze(1), drawn], dim=1), torch.cat([itself, possible], dim=1)

    @torch.no_grad()
    def item_scores(
        self, query: int, queries: Float[Tensor, "q d"], items: Float[Tensor, "g k d"], shown: Bool[Tensor, "g k"]
    ) -> Float[Tensor, "q g"]:
        """Gated products of every query of modality `query` with what every item shows of the others, without the temperature.

        `items` are zero where not shown.
        """
        others = shown.clone()
        others[:, query] = False
        return self.gate.products(query, queries, items, others)


def gated_product(candidates: Float[Tensor, "... d"], gated: Float[Tensor, "... k d"], others: Bool[Tensor, "... k"]) -> Tensor:
    """Multilinear inner product [...] of candidates and the `others` among the gated embeddings, times sqrt(d) for each of these."""
    factors = torch.where(others.unsqueeze(-1), gated * gated.shape[-1] ** 0.5, 1.0)
    product: Tensor = (candidates * factors.prod(dim=-2)).sum(dim=-1)
    return product


class ModalityGate(nn.Module):
    """How far a candidate of one modality trusts each other modality, and embeddings turned towards a neutral direction as far as it does not.

    Weight of modality m for a candidate of modality t: softmax over the modalities shown of cosine(Q_t z_t, K_m z_m) / temperature, beside a NULL option
    whose logit is a small network of z_t. A gated embedding is normalize((1 - a) z_m + a (w z_m + (1 - w) n_m)), with a unit vector n_m and a = sigmoid of
    a parameter, all learned.
    """

    def __init__(self, count: int, dim: int, temperature: float, seed: int, width: int = 256) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter((torch.rand(*shape, generator=generator) * 2 - 1) * shape[-2] ** -0.5)

        self.queries, self.keys = uniform(count, dim, width), uniform(count, dim, width)
        self.null_inner, self.null_outer = uniform(dim, width), uniform(width, 1)
        self.null_bias = nn.Parameter(torch.zeros(count))
        self.neutral = nn.Parameter(functional.normalize(torch.randn(count, dim, generator=generator), dim=1))
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())
        self.strength = nn.Parameter(torch.tensor(_STRENGTH))

    def weights(
        self, target: int, candidates: Float[Tensor, "... d"], items: Float[Tensor, "... k d"], others: Bool[Tensor, "... k"]
    ) -> Float[Tensor, "... k"]:
        """Trust of each candidate in the modalities `others`; with that in NULL they sum to 1. Zero elsewhere."""
        kind = candidates.dtype
        temperature = functional.softplus(self.log_temperature.to(kind)) + _COLDEST_GATE
        query = functional.normalize(candidates @ self.queries[target].to(kind), dim=-1, eps=1e-6)
        keys = functional.normalize(torch.einsum("...kd,kdw->...kw", items, self.keys.to(kind)), dim=-1, eps=1e-6)
        agreement = torch.einsum("...w,...kw->...k", query, keys)
        normed = functional.layer_norm(candidates, candidates.shape[-1:])
        inner = functional.relu(normed @ self.null_inner.to(kind))
        null = inner @ self.null_outer.to(kind) + self.null_bias[target].to(kind)
        # Masked last: infinity over a temperature has no gradient.
        agreement = (agreement / temperature).masked_fill(~others, -torch.inf)
        logits = torch.cat([agreement, (null / temperature).expand(*agreement.shape[:-1], 1)], dim=-1)
        return logits.softmax(dim=-1)[..., :-1]

    def forward(
        self, target: int, candidates: Float[Tensor, "... d"], items: Float[Tensor, "... k d"], others: Bool[Tensor, "... k"]
    ) -> Float[Tensor, "... k d"]:
        """Gated embeddings of the `others`, of unit norm; elsewhere some finite vectors."""
        weights = self.weights(target, candidates, items, others).unsqueeze(-1)
        kept, replaced = self._shares(weights)
        return functional.normalize(kept * items + replaced * self._neutral(items.dtype), dim=-1, eps=1e-6)

    def products(
        self, target: int, candidates: Float[Tensor, "q d"], items: Float[Tensor, "g k d"], others: Bool[Tensor, "g k"]
    ) -> Float[Tensor, "q g"]:
        """`gated_product` of every candidate with every item, by matrix products.

        A gated embedding is (x z + y n) / r with numbers x, y, r for each pair, so that the product over modalities is a sum of 2^k inner
        products of the candidate with products of embeddings and neutral directions.
        """
        weights = self.weights(target, candidates.unsqueeze(1), items.unsqueeze(0), others.unsqueeze(0))
        kept, replaced = self._shares(weights)
        neutral = self._neutral(items.dtype)
        along = torch.einsum("gkd,kd->gk", items, neutral)
        square = kept.square() * items.square().sum(dim=2) + 2 * kept * replaced * along + replaced.square()
        scale = items.shape[2] ** 0.5 / square.clamp_min(1e-12).sqrt()
        # A modality that an item does not show is a factor of one.
        kept, replaced = torch.where(others, kept * scale, 1.0), torch.where(others, replaced * scale, 0.0)
        vectors = torch.where(others.unsqueeze(2), items, 1.0)
        branches = [(torch.ones_like(kept[:, :, 0]), torch.ones_like(vectors[:, 0]))]
        for place in range(len(neutral)):
            if place != target:
                ways = ((kept[:, :, place], vectors[:, place]), (replaced[:, :, place], neutral[place]))
                branches = [(factor * more, product * vector) for factor, product in branches for more, vector in ways]
        return torch.stack([factor * (candidates @ product.mT) for factor, product in branches]).sum(dim=0)

    def _neutral(self, kind: torch.dtype) -> Float[Tensor, "k d"]:
        return functional.normalize(self.neutral.to(kind), dim=1, eps=1e-6)

    def _shares(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """How much of an embedding is kept, and how much of the neutral direction is added, before both are normalised."""
        share = self.strength.to(weights.dtype).sigmoid()
        return 1 - share + share * weights, share * (1 - weights)
