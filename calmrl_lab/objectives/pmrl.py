"""PMRL: the largest singular value of an item's modalities grows, its anchor stays apart from the others'."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from calmrl_lab.objectives import objectives
from calmrl_lab.objectives._options import positive
from calmrl_lab.objectives._spectral import spectral_terms


@objectives.register("pmrl")
class Pmrl(nn.Module):
    """Principled multimodal representation learning on the observed modalities only.

    loss = alignment + uniformity: -log softmax(sigma / tau1) of the largest singular value, and cross-entropy of anchors against
    anchors at tau2. Released defaults: tau1 0.05 (fine-tuning; 0.01 in pretraining), tau2 0.1, both fixed; at tau1 = 0.05 the
    alignment term has no gradient left once a set is roughly aligned. Mask: an item's set is what it shows; items that show one
    modality enter uniformity only, and are counted in `skipped`.
    """

    def __init__(
        self, modalities: tuple[str, ...], dim: int, alignment_temperature: float = 0.05, uniformity_temperature: float = 0.1
    ) -> None:
        super().__init__()
        self.tau1 = positive("pmrl", "alignment_temperature", alignment_temperature)
        self.tau2 = positive("pmrl", "uniformity_temperature", uniformity_temperature)

    def forward(
        self, embeddings: Float[Tensor, "b k d"], mask: Bool[Tensor, "b k"], imputed: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`loss`, `alignment`, `uniformity`, `skipped`. `imputed` is not used."""
        terms = spectral_terms(embeddings, mask, self.tau1, self.tau2)
        return {"loss": terms["alignment"] + terms["uniformity"], **terms}
