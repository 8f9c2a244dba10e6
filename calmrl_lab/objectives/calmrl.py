"""CalMRL: the terms of PMRL on observed and imputed modalities together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.spectral import SpectralObjective


@objectives.register("calmrl")
class CalMRL(SpectralObjective):
    """Calibrated multimodal representation learning (arXiv 2511.12034, Eq. 9): PMRL on sets completed by an imputer.

    The set of an item is its observed embeddings and the imputed ones in place of the hidden (no gradient flows into those). Matching sees
    observed modalities only: an imputed embedding is a function of the observed ones, and would be matched for free. Without
    `imputed` the observed modalities alone make the set, which is what training does before the imputer is fitted, and so they do for
    an item whose `imputed` entries are NaN, which the gate has left uncalibrated. An item that shows nothing has nothing to impute
    from and enters no term. On complete data this is PMRL, term by term. Eq. 9 is printed without a logarithm and calls
    the singular values lambda; `-log softmax` of singular values is what CalMRL's own code computes.

    Its training scripts use temperatures 0.05 and 0.1 (ablated from 0.02 to 2) and alpha 0.1, leave the anchors' signs to the SVD, take the spectrum of
    caption, vision and audio only (subtitles enter the imputer's posterior alone) and compare anchors with candidates that have no gradient: `sign="raw"`,
    `spectrum_of`, `detach_gathered` and `detach_context`, all set by the method calmrl-released. Its temperatures leave no gradient in the alignment of
    heads that start at random (docs/decisions.md), so the defaults here are what validation chose on real features: 0.5 and 0.05.

    >>> import torch
    >>> from calmrl_lab.objectives import CalMRL
    >>> embeddings = torch.nn.functional.normalize(torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) < 0.8
    >>> objective = CalMRL(("vision", "audio", "caption"), dim=16)
    >>> bool(objective(embeddings, mask, imputed=embeddings)["loss"].isfinite())
    True
    """

    name = "calmrl"
    uses_imputed = True

    def __init__(
        self,
        modalities: tuple[str, ...],
        dim: int,
        alignment_temperature: float = 0.5,
        uniformity_temperature: float = 0.05,
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

    def sets(self, embeddings: Tensor, mask: Tensor, imputed: Tensor | None) -> tuple[Tensor, Tensor]:
        if imputed is None:
            return embeddings, mask
        known = mask | ~imputed.isnan().any(dim=-1)
        completed = torch.where(mask.unsqueeze(-1), embeddings, imputed.nan_to_num())
        return completed, known & mask.any(dim=1, keepdim=True)
