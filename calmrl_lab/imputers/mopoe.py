"""MoPoE: a variational autoencoder whose posterior is a mixture over the subsets of observed modalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._networks import NetworkImputer, mean_shown
from calmrl_lab.imputers._vae import ExpertsNetwork, divergence_from_prior, product_of_experts, sampled
from calmrl_lab.imputers.base import whole

# 2^k - 1 subsets are decoded wherever gaps are filled.
MOST = 8


@imputers.register("mopoe")
@dataclass(eq=False)
class MoPoE(NetworkImputer):
    """A variational autoencoder whose posterior is a mixture of products of experts, one product per subset (Sutter et al. 2021).

    As CalMRL's authors compare it: every non-empty subset of what an item shows has the product of the prior and its experts as its posterior, from
    which all observed modalities are decoded; loss = mean over subsets of (-log p per coordinate + KL per latent coordinate); a gap becomes the mean over
    subsets of the decoded posterior means. Networks are those of `mvae`, but each subset is trained to tell about the rest. Fitted on complete and
    incomplete rows of at most 8 modalities; further options are those of `NetworkImputer`.

    max_subsets: subsets in a training step, drawn anew in each where there are more; 0: all of them, always. The default holds all of four modalities.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import MoPoE
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = MoPoE().fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "mopoe"

    latent_dim: int = 64
    max_subsets: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        self.latent_dim = whole(self.latent_dim, "latent_dim", 1)
        self.max_subsets = whole(self.max_subsets, "max_subsets", 0)

    def build(self, dims: Sequence[int], generator: torch.Generator | None) -> nn.Module:
        if len(dims) > MOST:
            raise CalmrlError(
                f"imputer 'mopoe' decodes every subset of modalities: at most {MOST} modalities, got {len(dims)}",
                hint="use mvae",
            )
        return ExpertsNetwork(dims, self.hidden, self.latent_dim, self.dropout, generator)

    def loss(self, values: Sequence[Tensor], seen: Tensor, generator: torch.Generator) -> Tensor:
        assert isinstance(self.network, ExpertsNetwork)
        inside, holds = _subsets(seen)
        if 0 < self.max_subsets < len(inside):
            drawn = torch.randperm(len(inside), generator=generator)[: self.max_subsets]
            inside, holds = inside[drawn], holds[drawn]
        mean, variance = _posteriors(*self.network.experts(values, generator), inside)
        latent = sampled(mean, variance, generator)
        count = len(inside)
        repeated = [value.repeat(count, 1) for value in values]
        surprise = self.network.surprise(repeated, seen.repeat(count, 1), latent.flatten(0, 1), generator)
        terms = surprise.view(count, -1) + divergence_from_prior(mean.flatten(0, 1), variance.flatten(0, 1)).view(count, -1)
        per_item = mean_shown(terms.T, holds.T)
        return per_item.sum() / holds.any(dim=0).sum().clamp_min(1)

    def predict(self, values: Sequence[Tensor], shown: Tensor) -> list[Tensor]:
        assert isinstance(self.network, ExpertsNetwork)
        inside, holds = _subsets(shown)
        latent, _ = _posteriors(*self.network.experts(values), inside)
        weight = holds.unsqueeze(2).to(latent.dtype)
        total = weight.sum(dim=0).clamp_min(1)
        return [(weight * decoder(latent)).sum(dim=0) / total for decoder in self.network.decoders]


def _subsets(shown: Bool[Tensor, "n k"]) -> tuple[Bool[Tensor, "s k"], Bool[Tensor, "s n"]]:
    """All non-empty subsets of modalities that some item shows, and which items show all of one."""
    k = shown.shape[1]
    inside = torch.tensor([[bool(number >> m & 1) for m in range(k)] for number in range(1, 2**k)])
    holds = (shown.unsqueeze(0) | ~inside.unsqueeze(1)).all(dim=2)
    some = holds.any(dim=1)
    return inside[some], holds[some]


def _posteriors(
    mean: Float[Tensor, "n k q"], precision: Float[Tensor, "n k q"], inside: Bool[Tensor, "s k"]
) -> tuple[Float[Tensor, "s n q"], Float[Tensor, "s n q"]]:
    """Mean and variance of the product of the prior and the experts of every subset, for every item."""
    count, subsets = len(mean), len(inside)
    rows = inside.unsqueeze(1).expand(-1, count, -1).reshape(-1, inside.shape[1])
    center, variance = product_of_experts(mean.repeat(subsets, 1, 1), precision.repeat(subsets, 1, 1), rows)
    return center.view(subsets, count, -1), variance.view(subsets, count, -1)
