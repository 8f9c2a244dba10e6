"""CLIP: contrastive learning of every pair of observed modalities."""

from __future__ import annotations

import itertools

from torch import Tensor

from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.base import LearnedTemperature, Objective, positive, same_group, skipped, without_hidden
from calmrl_lab.objectives.terms.contrastive import pairwise_contrast


@objectives.register("clip")
class CLIP(Objective):
    """Pairwise contrastive loss over all observed pairs of modalities (Radford et al. 2021); the strong plain baseline.

    Mask: a pair of modalities is trained on the items that show both; items that show one of them are negatives for that side. Pairs
    weigh equally among those with at least two items. `temperature` starts at 0.07 and is learned, its inverse at most 100.
    Items that no such pair uses are counted in `skipped`.

    >>> import torch
    >>> from calmrl_lab.objectives import CLIP
    >>> embeddings = torch.nn.functional.normalize(torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) < 0.8
    >>> objective = CLIP(("vision", "audio", "caption"), dim=16)
    >>> bool(objective(embeddings, mask)["loss"].isfinite())
    True
    """

    name = "clip"

    def __init__(self, modalities: tuple[str, ...], dim: int, temperature: float = 0.07) -> None:
        super().__init__(modalities, dim)
        self.scale = LearnedTemperature(positive(self.name, "temperature", temperature))
        self.pairs = list(itertools.combinations(range(len(modalities)), 2))

    def terms(self, embeddings: Tensor, mask: Tensor, imputed: Tensor | None, groups: Tensor | None) -> dict[str, Tensor]:
        """`loss`, `temperature`, `skipped`."""
        scale = self.scale()
        shown = without_hidden(embeddings, mask)
        loss, used = pairwise_contrast(shown, mask, self.pairs, [scale] * len(self.pairs), same_group(groups))
        return {"loss": loss, "temperature": 1 / scale.detach(), "skipped": skipped(used, loss)}
