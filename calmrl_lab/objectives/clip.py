"""CLIP: contrastive learning of every pair of observed modalities."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from calmrl_lab.objectives import objectives
from calmrl_lab.objectives._contrastive import symmetric_cross_entropy
from calmrl_lab.objectives._options import LearnedTemperature, positive


@objectives.register("clip")
class Clip(nn.Module):
    """Pairwise contrastive loss over all observed pairs of modalities (Radford et al. 2021); the strong plain baseline.

    Mask: a pair of modalities is trained on the items that show both; items that show one of them are negatives for that side. Pairs
    weigh equally among those with at least two items. `temperature` starts at 0.07 and is learned, its inverse at most 100.
    """

    def __init__(self, modalities: tuple[str, ...], dim: int, temperature: float = 0.07) -> None:
        super().__init__()
        self.scale = LearnedTemperature(positive("clip", "temperature", temperature))

    def forward(
        self, embeddings: Float[Tensor, "b k d"], mask: Bool[Tensor, "b k"], imputed: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`loss`, `temperature`, and the number of pairs `skipped` because fewer than two items show them. `imputed` is not used."""
        shown = embeddings.masked_fill(~mask.unsqueeze(-1), 0.0)
        scale = self.scale().to(shown.dtype)
        total, pairs = shown.sum() * 0.0, torch.zeros((), dtype=shown.dtype, device=shown.device)
        combinations = list(itertools.combinations(range(mask.shape[1]), 2))
        for a, b in combinations:
            term, count = symmetric_cross_entropy(scale * (shown[:, a] @ shown[:, b].mT), mask[:, a], mask[:, b])
            valid = (count > 1).to(shown.dtype)
            total, pairs = total + valid * term, pairs + valid
        loss = total / pairs.clamp_min(1)
        return {"loss": loss, "temperature": 1 / scale.detach(), "skipped": len(combinations) - pairs}
