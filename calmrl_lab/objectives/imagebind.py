"""ImageBind: every modality is contrasted with one anchor modality, the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.base import (
    IMAGE,
    LearnedTemperature,
    Objective,
    modality_index,
    positive,
    same_group,
    skipped,
    without_hidden,
)
from calmrl_lab.objectives.terms.contrastive import hold, pairwise_contrast

# Factors of the released model for the modalities whose factor is not learned.
_RELEASED_SCALES = {"audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}


@objectives.register("imagebind")
class ImageBind(Objective):
    """Contrast of each modality with the image alone (Girdhar et al. 2023): the others meet only through it.

    Loss: mean over the modalities m of symmetric cross-entropy of scale_m * <image, m>. Released factors: audio 20, depth 5, thermal 10, imu
    5, fixed (`fixed_scales`); all others learned, from 1/0.07. The release adds both directions of a pair, where this takes their mean: half its loss. Mask: a pair is trained on the items that show both, and an
    item that lacks the image trains nothing (counted in `skipped`).
    `anchor_modality` (default: vision, image or video, else the first). `frozen` names modalities whose embeddings receive no gradient: released
    ImageBind freezes image and text as OpenCLIP left them, which makes sense for heads that start from a trained model (`init: stored`) and not
    for random ones, so the default freezes none.

    >>> import torch
    >>> from calmrl_lab.objectives import ImageBind
    >>> embeddings = torch.nn.functional.normalize(torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) < 0.8
    >>> objective = ImageBind(("vision", "audio", "caption"), dim=16)
    >>> bool(objective(embeddings, mask)["loss"].isfinite())
    True
    """

    name = "imagebind"

    def __init__(
        self,
        modalities: tuple[str, ...],
        dim: int,
        anchor_modality: str | None = None,
        frozen: Sequence[str] = (),
        temperature: float = 0.07,
        fixed_scales: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(modalities, dim)
        anchor = modality_index(self.name, modalities, anchor_modality, IMAGE)
        self.frozen = [modality_index(self.name, modalities, name, ()) for name in frozen]
        start = positive(self.name, "temperature", temperature)
        fixed = _RELEASED_SCALES if fixed_scales is None else fixed_scales
        self.pairs = [(anchor, other) for other in range(len(modalities)) if other != anchor]
        self.scales = nn.ModuleList(
            LearnedTemperature(1 / positive(self.name, f"fixed_scales.{name}", fixed[name]), fixed=True)
            if name in fixed
            else LearnedTemperature(start)
            for name in (modalities[other] for _, other in self.pairs)
        )

    def terms(self, embeddings: Tensor, mask: Tensor, imputed: Tensor | None, groups: Tensor | None) -> dict[str, Tensor]:
        """`loss`, `temperature` (mean over pairs), `skipped`."""
        shown = hold(without_hidden(embeddings, mask), self.frozen)
        scales = [scale() for scale in self.scales]
        loss, used = pairwise_contrast(shown, mask, self.pairs, scales, same_group(groups))
        mean = torch.stack([1 / scale.detach() for scale in scales]).mean()
        return {"loss": loss, "temperature": mean, "skipped": skipped(used, loss)}
