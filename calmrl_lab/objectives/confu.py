"""ConFu: pairs of modalities agree, and so does the fusion of every pair with every third."""

from __future__ import annotations

import itertools
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.base import Objective, positive, same_group, share, skipped, without_hidden
from calmrl_lab.objectives.terms.contrastive import pairwise_contrast, symmetric_cross_entropy
from calmrl_lab.runtime.devices import send

_HIDDEN, _DROPOUT, _LEAK = 512, 0.1, 0.2


@objectives.register("confu")
class ConFu(Objective):
    """Contrast of every pair of modalities, and of the fusion of every pair with every third (Koutoupis et al., CVPR 2026, arXiv 2511.21331).

    loss = ((1 - fused_share) * mean over pairs + fused_share * mean over fused pairs) / 2, each a symmetric cross-entropy; released: fused_share 0.5,
    temperature 0.07, fixed; a fusion head for each pair, with one hidden layer of 512 and dropout 0.1. Its heads see what encoders give out, these see
    embeddings. Mask: a pair is trained on the items that show both, a fused pair with a third on those that show all three; items that show less are
    negatives on the sides that they show. With two modalities there is no third, and the loss is that of pairs.

    >>> import torch
    >>> from calmrl_lab.objectives import ConFu
    >>> embeddings = torch.nn.functional.normalize(torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) < 0.8
    >>> objective = ConFu(("vision", "audio", "caption"), dim=16)
    >>> bool(objective(embeddings, mask)["loss"].isfinite())
    True
    """

    name = "confu"
    scorer = "objective"
    signs_matter = True

    def __init__(
        self,
        modalities: tuple[str, ...],
        dim: int,
        temperature: float = 0.07,
        fused_share: float = 0.5,
        dropout: float = _DROPOUT,
        seed: int = 0,
    ) -> None:
        super().__init__(modalities, dim)
        self.temperature = positive(self.name, "temperature", temperature)
        self.fused_share = share(self.name, "fused_share", fused_share)
        self.dropout = share(self.name, "dropout", dropout)
        self.pairs = list(itertools.combinations(range(len(modalities)), 2))
        self.generator = torch.Generator().manual_seed(seed)
        self.heads = nn.ModuleList(_PairHead(dim, seed + place) for place in range(len(self.pairs)))

    def terms(self, embeddings: Tensor, mask: Tensor, imputed: Tensor | None, groups: Tensor | None) -> dict[str, Tensor]:
        """`loss`, `pairs`, `fused` (with three modalities or more), `skipped`."""
        shown, same = without_hidden(embeddings, mask), same_group(groups)
        scale = embeddings.new_tensor(1 / self.temperature)
        pairs, used = pairwise_contrast(shown, mask, self.pairs, [scale] * len(self.pairs), same)
        if len(self.modalities) < 3:
            return {"loss": pairs, "pairs": pairs, "skipped": skipped(used, pairs)}
        fused, valid_terms = shown.sum() * 0.0, torch.zeros_like(pairs)
        for (a, b), head in zip(self.pairs, self.heads, strict=True):
            joint, both = head(shown[:, a], shown[:, b], self.dropout, self.generator), mask[:, a] & mask[:, b]
            for third in range(len(self.modalities)):
                if third in (a, b):
                    continue
                term, asked = symmetric_cross_entropy(scale * joint @ shown[:, third].mT, both, mask[:, third], same=same)
                valid = asked.sum() > 1
                fused, valid_terms = fused + torch.where(valid, term, 0.0), valid_terms + valid
        fused = fused / valid_terms.clamp_min(1)
        loss = ((1 - self.fused_share) * pairs + self.fused_share * fused) / 2
        return {"loss": loss, "pairs": pairs, "fused": fused, "skipped": skipped(used, loss)}

    def fused_items(self, query: int, items: Float[Tensor, "n k d"], shown: Bool[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """One unit vector per item: the mean of the fusions of its pairs beside `query`, or its one embedding; zero where it shows none."""
        others = shown.clone()
        others[:, query] = False
        total = torch.where((others.sum(dim=1) == 1).unsqueeze(1), (items * others.unsqueeze(2)).sum(dim=1), 0.0)
        for (a, b), head in zip(self.pairs, self.heads, strict=True):
            both = (others[:, a] & others[:, b]).unsqueeze(1)
            total = total + torch.where(both, head(items[:, a], items[:, b]), 0.0)
        return functional.normalize(total, dim=1, eps=1e-12)

    @torch.no_grad()
    def item_scores(
        self, query: int, queries: Float[Tensor, "q d"], items: Float[Tensor, "g k d"], shown: Bool[Tensor, "g k"]
    ) -> Float[Tensor, "q g"]:
        """Cosine of every query of modality `query` with `fused_items`."""
        return queries @ self.fused_items(query, items, shown).mT


class _PairHead(nn.Module):
    """normalize(LeakyReLU(B ReLU(A [x; y]))), dropout after both layers."""

    def __init__(self, dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, into, out in (("inner", 2 * dim, _HIDDEN), ("outer", _HIDDEN, dim)):
            bound = into**-0.5
            self.register_parameter(name, nn.Parameter((torch.rand(into, out, generator=generator) * 2 - 1) * bound))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(out)))

    def forward(self, x: Tensor, y: Tensor, rate: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        kind = x.dtype
        inner, inner_bias, outer, outer_bias = (
            cast(Tensor, self.get_parameter(name)).to(kind) for name in ("inner", "inner_bias", "outer", "outer_bias")
        )
        hidden = _dropped(functional.relu(torch.cat([x, y], dim=1) @ inner + inner_bias), rate, generator)
        out = _dropped(functional.leaky_relu(hidden @ outer + outer_bias, _LEAK), rate, generator)
        return functional.normalize(out, dim=1, eps=1e-12)


def _dropped(values: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    if generator is None or rate == 0:
        return values
    kept = torch.rand(values.shape, generator=generator) >= rate
    return values * send(kept.to(values.dtype), values.device) / (1 - rate)
