"""CoMM: what all modalities say together agrees with what each says alone, across two augmentations."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.base import Objective, not_negative, positive, same_group, skipped, without_hidden
from calmrl_lab.objectives.terms.fusion import MaskedFusion
from calmrl_lab.runtime.devices import send


@objectives.register("comm")
class CoMM(Objective):
    """What all modalities say together agrees with what each says alone (CoMM, Dufumier et al., ICLR 2025).

    NT-Xent between the fusion of everything shown in one augmentation and that of each modality alone in the other; loss = sum over modalities, and over the whole set itself, of the mean of both augmentation orders; 2N - 2 negatives; temperature 0.1,
    fixed, as released. The release averages these terms over the modalities and the whole, so its loss is this one over their number. Substitutes, since features are cached: augmentation is Gaussian noise of expected length `noise` on each embedding, and
    the fusion transformer is a small masked network that starts as the mean (see `MaskedFusion`). Mask: a modality's term
    is over the items that show it and at least one other; the whole of an item is what it shows. Others are counted in `skipped`.

    >>> import torch
    >>> from calmrl_lab.objectives import CoMM
    >>> embeddings = torch.nn.functional.normalize(torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) < 0.8
    >>> objective = CoMM(("vision", "audio", "caption"), dim=16)
    >>> bool(objective(embeddings, mask)["loss"].isfinite())
    True
    """

    name = "comm"
    scorer = "objective"
    signs_matter = True

    def __init__(
        self, modalities: tuple[str, ...], dim: int, temperature: float = 0.1, noise: float = 0.2, seed: int = 0
    ) -> None:
        super().__init__(modalities, dim)
        self.temperature = positive(self.name, "temperature", temperature)
        self.noise = not_negative(self.name, "noise", noise)
        self.generator = torch.Generator().manual_seed(seed)
        self.fusion = MaskedFusion(len(modalities), dim, seed)

    def terms(self, embeddings: Tensor, mask: Tensor, imputed: Tensor | None, groups: Tensor | None) -> dict[str, Tensor]:
        """`loss`, `whole` (everything against everything), `parts` (sum over modalities), `skipped`."""
        shown = without_hidden(embeddings, mask)
        able = mask.sum(dim=1) >= 2
        same = same_group(groups)
        mapped = [self.fusion.mapped(self._augmented(shown)) for _ in range(2)]
        wholes = [self.fusion(view, mask) for view in mapped]
        whole = nt_xent(wholes[0], wholes[1], able, self.temperature, same)
        parts = torch.zeros_like(whole)
        for index in range(mask.shape[1]):
            only = torch.zeros_like(mask)
            only[:, index] = mask[:, index]
            taking = able & mask[:, index]
            alone = [self.fusion(view, only) for view in mapped]
            there = nt_xent(alone[0], wholes[1], taking, self.temperature, same)
            back = nt_xent(alone[1], wholes[0], taking, self.temperature, same)
            parts = parts + (there + back) / 2
        used = able & (able.sum() > 1)
        return {"loss": whole + parts, "whole": whole, "parts": parts, "skipped": skipped(used, whole)}

    @torch.no_grad()
    def item_scores(
        self, query: int, queries: Float[Tensor, "q d"], items: Float[Tensor, "g k d"], shown: Bool[Tensor, "g k"]
    ) -> Float[Tensor, "q g"]:
        """Cosine of the fusion of every query of modality `query` alone with that of everything else that an item shows, as trained."""
        others = shown.clone()
        others[:, query] = False
        alone = torch.zeros(len(queries), items.shape[1], dtype=torch.bool, device=items.device)
        alone[:, query] = True
        placed = items.new_zeros(len(queries), *items.shape[1:])
        placed[:, query] = queries
        asked, fused = (self.fusion(self.fusion.mapped(z), seen) for z, seen in ((placed, alone), (items, others)))
        return asked @ fused.mT

    def _augmented(self, shown: Tensor) -> Tensor:
        if not self.noise:
            return shown
        drawn = torch.randn(shown.shape, generator=cast(torch.Generator, self.generator))
        step = send(drawn.to(shown.dtype), shown.device) * (self.noise * shown.shape[2] ** -0.5)
        return functional.normalize(shown + step, dim=2, eps=1e-12)


def nt_xent(
    first: Float[Tensor, "b d"],
    second: Float[Tensor, "b d"],
    valid: Bool[Tensor, " b"],
    temperature: float,
    same: Bool[Tensor, "b b"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over the 2N valid vectors of -log softmax(cosine / temperature) of their partner among all others (Chen et al. 2020).

    Vectors of other items of the same group are no negatives. Fewer than two valid items: a zero that keeps the graph.
    """
    both = torch.cat([first, second])
    count = len(first)
    own = torch.eye(count, dtype=torch.bool, device=first.device)
    related = torch.zeros_like(own) if same is None else same & ~own
    # A vector is no candidate of itself; its partner in the other view is.
    excluded = torch.cat([torch.cat([related | own, related], dim=1), torch.cat([related, related | own], dim=1)])
    present = valid.repeat(2)
    logits = both @ both.mT / temperature
    partner = logits.diagonal(count).repeat(2)
    normaliser = torch.logsumexp(logits.masked_fill(excluded | ~present.unsqueeze(0), -1e9), dim=1)
    counted = present & (valid.sum() > 1)
    return torch.where(counted, normaliser - partner, 0.0).sum() / counted.sum().clamp_min(1)
