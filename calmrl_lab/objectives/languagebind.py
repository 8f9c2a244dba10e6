"""LanguageBind: every modality is contrasted with language."""

from __future__ import annotations

from torch import Tensor

from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.base import (
    TEXT,
    LearnedTemperature,
    Objective,
    modality_index,
    positive,
    same_group,
    skipped,
    without_hidden,
)
from calmrl_lab.objectives.terms.contrastive import hold, pairwise_contrast


@objectives.register("languagebind")
class LanguageBind(Objective):
    """Contrast of each modality with the text alone (Zhu et al. 2024): the others meet only through it.

    Loss: mean over the modalities m of symmetric cross-entropy of scale * <text, m>, one learned factor for all, from 1/0.07 (OpenCLIP); released models are trained
    one modality at a time, each with a factor of its own. Mask: a pair
    is trained on the items that show both, and an item that lacks the text trains nothing (counted in `skipped`).
    `anchor_modality` (default: caption or text, else the first). `freeze_anchor` stops the gradient into the text, as released: its tower stays
    as OpenCLIP left it. That makes sense for heads that start from a trained model (`init: stored`), so the default trains it.

    >>> import torch
    >>> from calmrl_lab.objectives import LanguageBind
    >>> embeddings = torch.nn.functional.normalize(torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) < 0.8
    >>> objective = LanguageBind(("vision", "audio", "caption"), dim=16)
    >>> bool(objective(embeddings, mask)["loss"].isfinite())
    True
    """

    name = "languagebind"

    def __init__(
        self,
        modalities: tuple[str, ...],
        dim: int,
        anchor_modality: str | None = None,
        freeze_anchor: bool = False,
        temperature: float = 0.07,
    ) -> None:
        super().__init__(modalities, dim)
        anchor = modality_index(self.name, modalities, anchor_modality, TEXT)
        self.frozen = [anchor] if freeze_anchor else []
        self.scale = LearnedTemperature(positive(self.name, "temperature", temperature))
        self.pairs = [(anchor, other) for other in range(len(modalities)) if other != anchor]

    def terms(self, embeddings: Tensor, mask: Tensor, imputed: Tensor | None, groups: Tensor | None) -> dict[str, Tensor]:
        """`loss`, `temperature`, `skipped`."""
        scale = self.scale()
        shown = hold(without_hidden(embeddings, mask), self.frozen)
        loss, used = pairwise_contrast(shown, mask, self.pairs, [scale] * len(self.pairs), same_group(groups))
        return {"loss": loss, "temperature": 1 / scale.detach(), "skipped": skipped(used, loss)}
