"""MoPoE: a variational autoencoder whose posterior is a mixture over the subsets of observed modalities."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._networks import NetworkImputer
from calmrl_lab.imputers._options import whole
from calmrl_lab.imputers._vae import ExpertsNetwork, divergence_from_prior, product_of_experts, sampled

# 2^k - 1 subsets are decoded in every step.
MOST = 8


@imputers.register("mopoe")
@dataclass(eq=False)
class MoPoE(NetworkImputer):
    """A variational autoencoder whose posterior is a mixture of products of experts, one product a subset (Sutter et al. 2021).

    As CalMRL's authors compare it: every non-empty subset of what an item shows has the product of the prior and its experts as its posterior, from
    which all observed modalities are decoded; loss = mean over subsets of (-log p a coordinate + KL a latent coordinate); a gap becomes the mean over
    subsets of the decoded posterior means. Networks are those of `mvae`, but each subset is trained to tell about the rest. Fitted on complete and
    incomplete rows of at most 8 modalities; further options are those of `NetworkImputer`.
    """

    name: ClassVar[str] = "mopoe"

    latent_dim: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.latent_dim = whole(self.latent_dim, "latent_dim", 1)

    def build(self, dims: Sequence[int], generator: torch.Generator | None) -> nn.Module:
        if len(dims) > MOST:
            raise CalmrlError(
                f"imputer 'mopoe' decodes every subset of modalities: at most {MOST} modalities, got {len(dims)}",
                hint="use mvae",
            )
        return ExpertsNetwork(dims, self.hidden, self.latent_dim, self.dropout, generator)

    def loss(self, values: Sequence[Tensor], seen: Tensor, generator: torch.Generator) -> Tensor:
        assert isinstance(self.network, ExpertsNetwork)
        mean, precision = self.network.experts(values, generator)
        total = values[0].new_zeros(len(seen))
        count = torch.zeros_like(total)
        for inside, holds in _subsets(seen):
            center, variance = product_of_experts(mean, precision, inside)
            latent = sampled(center, variance, generator)
            term = self.network.surprise(values, seen, latent, generator) + divergence_from_prior(center, variance)
            total, count = total + torch.where(holds, term, 0.0), count + holds
        return (total / count.clamp_min(1)).mean()

    def predict(self, values: Sequence[Tensor], shown: Tensor) -> list[Tensor]:
        assert isinstance(self.network, ExpertsNetwork)
        mean, precision = self.network.experts(values)
        sums: list[Tensor] = [torch.zeros_like(value) for value in values]
        count = values[0].new_zeros(len(shown), 1)
        for inside, holds in _subsets(shown):
            latent, _ = product_of_experts(mean, precision, inside)
            weight = holds.unsqueeze(1).to(count.dtype)
            sums = [total + weight * decoder(latent) for total, decoder in zip(sums, self.network.decoders, strict=True)]
            count = count + weight
        return [total / count.clamp_min(1) for total in sums]


def _subsets(shown: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Every non-empty subset of modalities that some item shows: which modalities are in it [n, k], and which items show all of them [n]."""
    k = shown.shape[1]
    for size in range(1, k + 1):
        for subset in itertools.combinations(range(k), size):
            holds = shown[:, subset].all(dim=1)
            if bool(holds.any()):
                inside = torch.zeros_like(shown)
                inside[:, subset] = True
                yield inside, holds
