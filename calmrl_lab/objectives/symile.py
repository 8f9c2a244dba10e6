"""Symile: the multilinear inner product of all modalities of an item, against mixtures of other items' modalities."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.base import (
    LearnedTemperature,
    Objective,
    one_of,
    positive,
    same_group,
    skipped,
    without_hidden,
)
from calmrl_lab.runtime.devices import send

NEGATIVES = ("shuffled", "all")


@objectives.register("symile")
class Symile(Objective):
    """The multilinear inner product of all modalities of an item, against mixtures of other items' (Saporta et al., NeurIPS 2024).

    Score of a tuple = sum over coordinates of the product of its embeddings. For each modality a: cross-entropy of item i's own tuple against tuples that keep its embedding of a and take the rest from other items;
    mean over a. `negatives="shuffled"`, the efficient form of the release: as many tuples as items, each modality permuted on its own. `all`: every
    combination, B^(k-1) of them, for k <= 3. A tuple that happens to be the item's own is no negative. Temperature 0.07, learned (the
    release sets its start by experiment).
    Mask: the product is over what item i shows; the tuples it meets have the same modalities, drawn from items that show them. Items that show one
    modality take no part (`skipped`). Products of unit vectors shrink with their number, so each factor after the second
    is multiplied by sqrt(d), which makes patterns comparable; `arity_scale=False` leaves that out, as released.

    >>> import torch
    >>> from calmrl_lab.objectives import Symile
    >>> embeddings = torch.nn.functional.normalize(torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) < 0.8
    >>> objective = Symile(("vision", "audio", "caption"), dim=16)
    >>> bool(objective(embeddings, mask)["loss"].isfinite())
    True
    """

    name = "symile"
    scorer = "multilinear"
    signs_matter = True

    def __init__(
        self,
        modalities: tuple[str, ...],
        dim: int,
        negatives: str = "shuffled",
        temperature: float = 0.07,
        arity_scale: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(modalities, dim)
        self.negatives = one_of(self.name, "negatives", negatives, NEGATIVES)
        if negatives == "all" and len(modalities) > 3:
            raise CalmrlError(
                f"objective 'symile': all negatives of {len(modalities)} modalities are B^{len(modalities) - 1}, too many",
                hint="use negatives=shuffled",
            )
        self.scale = LearnedTemperature(positive(self.name, "temperature", temperature))
        self.arity = dim**0.5 if arity_scale else 1.0
        self.generator = torch.Generator().manual_seed(seed)

    def terms(self, embeddings: Tensor, mask: Tensor, imputed: Tensor | None, groups: Tensor | None) -> dict[str, Tensor]:
        """`loss`, `temperature`, `skipped`."""
        shown = without_hidden(embeddings, mask)
        scale = self.scale().to(shown.dtype)
        same = same_group(groups)
        sources = self._permutations(mask) if self.negatives == "shuffled" else None
        able = mask.sum(dim=1) >= 2
        total = shown.sum() * 0.0
        anchors = torch.zeros_like(total)
        used = torch.zeros_like(able)
        for anchor in range(mask.shape[1]):
            with_target = mask[:, anchor] & able
            per_item = torch.zeros_like(shown[:, 0, 0])
            for subset in self._subsets(anchor):
                # Every item is in exactly one subset: that of the other modalities it shows.
                pattern = torch.stack(
                    [mask[:, m] if m in subset else ~mask[:, m] for m in range(mask.shape[1]) if m != anchor], dim=1
                )
                loss = self._against(shown, mask, anchor, subset, sources, scale * self.arity ** (len(subset) - 1), same)
                per_item = per_item + torch.where(pattern.all(dim=1), loss, 0.0)
            valid = with_target.sum() > 1
            total = total + torch.where(
                valid, torch.where(with_target, per_item, 0.0).sum() / with_target.sum().clamp_min(1), 0.0
            )
            anchors = anchors + valid
            used = used | (with_target & valid)
        loss = total / anchors.clamp_min(1)
        return {"loss": loss, "temperature": 1 / scale.detach(), "skipped": skipped(used, loss)}

    def _subsets(self, anchor: int) -> list[tuple[int, ...]]:
        others = [m for m in range(len(self.modalities)) if m != anchor]
        return [s for size in range(1, len(others) + 1) for s in itertools.combinations(others, size)]

    def _against(
        self,
        shown: Tensor,
        mask: Tensor,
        anchor: int,
        subset: Sequence[int],
        sources: Tensor | None,
        scale: Tensor,
        same: Tensor | None,
    ) -> Tensor:
        """Loss [B] of every item as if it showed exactly `anchor` and `subset`."""
        count = len(shown)
        own = torch.arange(count, device=shown.device)
        if sources is None:
            grid = torch.cartesian_prod(*[own] * len(subset)).reshape(-1, len(subset))
        else:
            grid = torch.stack([sources[m] for m in subset], dim=1)
        tuples, exists = self._product(shown, mask, subset, grid)
        true, _ = self._product(shown, mask, subset, own.unsqueeze(1).expand(-1, len(subset)))
        positive_logit = scale * (shown[:, anchor] * true).sum(dim=1)
        logits = scale * (shown[:, anchor] @ tuples.mT)
        # Its own tuple, or one made of items of its group alone, is no negative.
        akin = (grid.unsqueeze(0) == own[:, None, None]) if same is None else same[:, grid]
        logits = logits.masked_fill(akin.all(dim=2) | ~exists.unsqueeze(0), -torch.inf)
        if sources is not None:
            # The released form puts the positive in the item's own column: B - 1 negatives.
            logits = logits.masked_fill(torch.eye(count, dtype=torch.bool, device=shown.device), -torch.inf)
        return torch.logsumexp(torch.cat([positive_logit.unsqueeze(1), logits], dim=1), dim=1) - positive_logit

    @staticmethod
    def _product(shown: Tensor, mask: Tensor, subset: Sequence[int], grid: Tensor) -> tuple[Tensor, Tensor]:
        """Products [n, d] of the embeddings that the rows of `grid` [n, |subset|] name, and whether all of them are shown."""
        product, exists = shown[grid[:, 0], subset[0]], mask[grid[:, 0], subset[0]]
        for place, modality in enumerate(subset[1:], start=1):
            product = product * shown[grid[:, place], modality]
            exists = exists & mask[grid[:, place], modality]
        return product, exists

    def _permutations(self, mask: Tensor) -> Tensor:
        """[k, B]: for each modality, a random permutation of the items that show it, repeated to the length of the batch."""
        keys = torch.rand(mask.shape, generator=cast(torch.Generator, self.generator))
        keys = send(keys, mask.device) + 2.0 * (~mask)
        order = keys.argsort(dim=0)
        places = torch.arange(len(mask), device=mask.device).unsqueeze(1) % mask.sum(dim=0).clamp_min(1)
        return order.gather(0, places).T
