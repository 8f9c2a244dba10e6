"""The base of the variational imputers: an encoder and a decoder per modality, Gaussian experts, their product with the prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from calmrl_lab.imputers._networks import LOG_VARIANCE_LIMIT, MLP, gaussian_surprise, linear, mean_shown

_HIGHEST_PRECISION, _LEAST_PRECISION = 1e6, 1e-6


class ExpertsNetwork(nn.Module):
    """An encoder to a Gaussian over the latent vector and a decoder for each modality, and a log-variance for each decoder."""

    def __init__(
        self, dims: Sequence[int], hidden: int, latent: int, dropout: float, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(MLP(d, hidden, hidden, dropout, generator) for d in dims)
        self.means = nn.ModuleList(linear(hidden, latent, generator) for _ in dims)
        self.log_variances = nn.ModuleList(linear(hidden, latent, generator) for _ in dims)
        self.decoders = nn.ModuleList(MLP(latent, hidden, d, dropout, generator) for d in dims)
        self.noise = nn.Parameter(torch.zeros(len(dims)))

    def experts(
        self, values: Sequence[Float[Tensor, "n d_m"]], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "n k q"], Float[Tensor, "n k q"]]:
        """Mean and precision of what every modality says about the latent vector."""
        states = [trunk(value, generator) for trunk, value in zip(self.trunks, values, strict=True)]
        mean = torch.stack([layer(state) for layer, state in zip(self.means, states, strict=True)], dim=1)
        log_variance = torch.stack([layer(state) for layer, state in zip(self.log_variances, states, strict=True)], dim=1)
        limited = log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        return mean, (-limited).exp().clamp_max(_HIGHEST_PRECISION)

    def surprise(
        self,
        values: Sequence[Float[Tensor, "n d_m"]],
        seen: Bool[Tensor, "n k"],
        latent: Float[Tensor, "n q"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, " n"]:
        """-log p of what an item shows given its latent vector, a coordinate, mean over the modalities `seen`."""
        decoded = [decoder(latent, generator) for decoder in self.decoders]
        terms = [gaussian_surprise(v, d, lv) for v, d, lv in zip(values, decoded, self.noise, strict=True)]
        return mean_shown(torch.stack(terms, dim=1), seen)


def product_of_experts(
    mean: Float[Tensor, "n k q"], precision: Float[Tensor, "n k q"], shown: Bool[Tensor, "n k"]
) -> tuple[Float[Tensor, "n q"], Float[Tensor, "n q"]]:
    """Mean and variance of the product of the prior N(0, I) and the experts that are `shown`."""
    weight = precision * shown.unsqueeze(2)
    total = (1 + weight.sum(dim=1)).clamp_min(_LEAST_PRECISION)
    return (weight * mean).sum(dim=1) / total, 1 / total


def sampled(mean: Tensor, variance: Tensor, generator: torch.Generator) -> Tensor:
    """A draw of N(mean, variance), with a gradient into both."""
    return mean + variance.sqrt() * torch.randn(mean.shape, generator=generator)


def divergence_from_prior(mean: Float[Tensor, "n q"], variance: Float[Tensor, "n q"]) -> Float[Tensor, " n"]:
    """KL(N(mean, variance) || N(0, I)) of every item, mean over the latent coordinates."""
    return 0.5 * (variance + mean.square() - 1 - variance.log()).mean(dim=1)
