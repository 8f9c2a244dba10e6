"""The two spectral terms of PMRL and CalMRL: alignment of one modality set, uniformity between items."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.objectives._contrastive import symmetric_cross_entropy
from calmrl_lab.spectrum import spectrum


def spectral_terms(
    embeddings: Float[Tensor, "b k d"],
    mask: Bool[Tensor, "b k"],
    alignment_temperature: float,
    uniformity_temperature: float,
) -> dict[str, Tensor]:
    """`alignment`, `uniformity` and the number of items `skipped` by the alignment term.

    alignment: -log softmax(sigma / tau1) of the largest singular value, over as many values as the item shows modalities (PMRL; Eq. 9 of
    CalMRL is printed without the logarithm), mean over items that show at least two; others have nothing to align and are counted in
    `skipped`. uniformity: cross-entropy of anchors against anchors at tau2 with the item itself as target, over items that show anything.
    """
    values, anchor = spectrum(embeddings, mask)
    shown = mask.sum(dim=1)
    aligned = shown >= 2
    # Rank r of an item has r values; the zeros that stand for hidden modalities must not enter its softmax.
    place = torch.arange(mask.shape[1], device=mask.device)
    logits = (values / alignment_temperature).masked_fill(place >= shown.clamp_min(1).unsqueeze(1), -torch.inf)
    per_item = torch.logsumexp(logits, dim=1) - logits[:, 0]
    alignment = torch.where(aligned, per_item, 0.0).sum() / aligned.sum().clamp_min(1)
    present = shown > 0
    # The matrix is symmetric: both directions are the same number.
    uniformity, _ = symmetric_cross_entropy(anchor @ anchor.mT / uniformity_temperature, present, present)
    return {"alignment": alignment, "uniformity": uniformity, "skipped": (~aligned).sum().to(values.dtype)}
