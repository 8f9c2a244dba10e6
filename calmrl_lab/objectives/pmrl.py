"""PMRL: the largest singular value of an item's modalities grows, its anchor stays apart from the others'."""

from __future__ import annotations

from collections.abc import Sequence

from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.spectral import SpectralObjective


@objectives.register("pmrl")
class PMRL(SpectralObjective):
    """Principled multimodal representation learning on the observed modalities only.

    loss = alignment + uniformity + alpha * matching: -log softmax(sigma / tau1) of the largest singular value, cross-entropy of anchors against
    anchors at tau2, and a substitute for its matching loss. Released defaults: tau1 0.05 (fine-tuning; 0.01 in pretraining), tau2
    0.1, both fixed, matching weight 0.1; at tau1 = 0.05 the alignment term has no gradient left once a set is roughly aligned.
    Released code requires every modality and leaves the anchors' signs to the SVD (`sign="raw"`). Mask: an item's set is what it
    shows; items that show one modality enter uniformity only, and are counted in `skipped`.

    >>> import torch
    >>> from calmrl_lab.objectives import PMRL
    >>> embeddings = torch.nn.functional.normalize(torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) < 0.8
    >>> objective = PMRL(("vision", "audio", "caption"), dim=16)
    >>> bool(objective(embeddings, mask)["loss"].isfinite())
    True
    """

    name = "pmrl"

    def __init__(
        self,
        modalities: tuple[str, ...],
        dim: int,
        alignment_temperature: float = 0.05,
        uniformity_temperature: float = 0.1,
        alpha: float = 0.1,
        spectrum: str = "sigma",
        sign: str = "mean",
        query: str | None = None,
        seed: int = 0,
        negative_temperature: float = 0.07,
        spectrum_of: Sequence[str] | None = None,
        detach_gathered: bool = False,
        detach_context: bool = False,
    ) -> None:
        super().__init__(
            modalities, dim, alignment_temperature, uniformity_temperature, alpha, spectrum, sign, query, seed, negative_temperature,
            spectrum_of, detach_gathered, detach_context,
        )  # fmt: skip
