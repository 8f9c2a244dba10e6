"""CalMRL: the terms of PMRL on observed and imputed modalities together."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from calmrl_lab.errors import CalmrlError
from calmrl_lab.objectives import objectives
from calmrl_lab.objectives._matching import MatchingHead, matching_loss
from calmrl_lab.objectives._options import positive
from calmrl_lab.objectives._spectral import spectral_terms


@objectives.register("calmrl")
class Calmrl(nn.Module):
    """Calibrated multimodal representation learning (arXiv 2511.12034, Eq. 9): PMRL on sets completed by an imputer.

    loss = alignment + uniformity + alpha * matching. The set of an item is its observed embeddings and the imputed ones in place of the hidden (no
    gradient flows into those). Matching sees observed modalities only and uses a substitute head (see `_matching`): an imputed embedding is
    a function of the observed ones, and would be matched for free. On complete data the spectral terms are exactly PMRL's.
    Published: alpha 0.1. The temperatures are not published; PMRL's leave no gradient for heads that start at random (docs/decisions.md),
    so the defaults are what validation chose on real features: 0.5 and 0.05. `query` names the modality that asks in matching
    (default: `caption` if there is one, else the first).
    """

    def __init__(
        self,
        modalities: tuple[str, ...],
        dim: int,
        alignment_temperature: float = 0.5,
        uniformity_temperature: float = 0.05,
        alpha: float = 0.1,
        query: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tau1 = positive("calmrl", "alignment_temperature", alignment_temperature)
        self.tau2 = positive("calmrl", "uniformity_temperature", uniformity_temperature)
        if alpha < 0:
            raise CalmrlError(f"objective 'calmrl': alpha must not be negative, got {alpha}")
        if query is not None and query not in modalities:
            raise CalmrlError(f"objective 'calmrl': there is no modality '{query}'", hint=f"there are: {', '.join(modalities)}")
        self.alpha = float(alpha)
        self.query = modalities.index(query or ("caption" if "caption" in modalities else modalities[0]))
        self.generator = torch.Generator().manual_seed(seed)
        if self.alpha:
            self.matching = MatchingHead(dim, seed)

    def forward(
        self, embeddings: Float[Tensor, "b k d"], mask: Bool[Tensor, "b k"], imputed: Float[Tensor, "b k d"] | None = None
    ) -> dict[str, Tensor]:
        """`loss`, `alignment`, `uniformity`, `skipped`, and `matching` if alpha > 0.

        `imputed` [B, k, d] stands in wherever `mask` is False; without it, the observed modalities alone make the set (as PMRL), which is
        what training does before the imputer is fitted.
        """
        if imputed is None:
            completed, full = embeddings, mask
        else:
            completed = torch.where(mask.unsqueeze(-1), embeddings, imputed.detach().to(embeddings.dtype))
            # An item that shows nothing has nothing to impute from.
            full = mask.any(dim=1, keepdim=True).expand_as(mask)
        terms = spectral_terms(completed, full, self.tau1, self.tau2)
        loss = terms["alignment"] + terms["uniformity"]
        if self.alpha:
            terms["matching"] = matching_loss(self.matching, embeddings, mask, self.query, self.generator)
            loss = loss + self.alpha * terms["matching"]
        return {"loss": loss, **terms}
