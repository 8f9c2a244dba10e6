"""The posterior of PPCA for one pattern: conditional mean, covariance factor and likelihood given the observed modalities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.linalg.positive_definite import precision_root


class Posterior:
    """Gaussian conditional of one pattern, in factored form: only q x q systems are solved, and nothing of size d x d is built.

    `weights` k of [d_m, q], `means` k of [d_m], `noise` [k] are float64 parameters on one device. With nothing observed the
    posterior is the prior.
    """

    def __init__(
        self, weights: Sequence[Tensor], means: Sequence[Tensor], noise: Float[Tensor, " k"], observed: Sequence[int]
    ) -> None:
        self.weights, self.means, self.noise = list(weights), list(means), noise
        self.observed = tuple(observed)
        q = self.weights[0].shape[1]
        eye = torch.eye(q, dtype=torch.float64, device=noise.device)
        lower = (
            precision_root([self.weights[j] for j in self.observed], [noise[j] for j in self.observed])
            if self.observed
            else eye
        )
        # V = factor factor', with K = L L' and factor = L^-T.
        self.factor: Float[Tensor, "q q"] = torch.linalg.solve_triangular(lower, eye, upper=False).T
        self.log_determinant = 2 * lower.diagonal().log().sum()
        self._gains = {j: (self.weights[j] / noise[j]) @ (self.factor @ self.factor.T) for j in self.observed}

    @property
    def covariance(self) -> Float[Tensor, "q q"]:
        """Posterior covariance V of the latent vector; the same for every item of the pattern."""
        return self.factor @ self.factor.T

    def latent(self, values: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, "n q"]:
        """Posterior mean of the latent vector for `values`, one array per modality of `observed`, in their dtype (float32 at
        least).

        The gain is folded in float64 first, so that float32 arrays meet no ill-conditioned product.
        """
        assert self.observed, "the prior mean needs no values"
        result: Tensor | None = None
        for j, value in zip(self.observed, values, strict=True):
            kind = value.dtype if value.dtype in (torch.float32, torch.float64) else torch.float32
            part = (value.to(kind) - self.means[j].to(kind)) @ self._gains[j].to(kind)
            result = part if result is None else result + part
        assert result is not None
        return result

    def mean(self, index: int, latent: Float[Tensor, "n q"]) -> Float[Tensor, "n d"]:
        """Conditional mean of modality `index` at posterior latent means `latent`."""
        kind = latent.dtype
        return torch.addmm(self.means[index].to(kind), latent, self.weights[index].to(kind).T)

    def draw(
        self, latent: Float[Tensor, "n q"], missing: Sequence[int], samples: int, generator: torch.Generator
    ) -> dict[int, Float[Tensor, "s n d"]]:
        """`samples` draws of the modalities `missing` from their joint conditional distribution at posterior latent means
        `latent`.

        Made on the generator's device, so that a seed means the same whatever device the embeddings are on.
        """
        kind, place = latent.dtype, latent.device

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=kind, device=generator.device).to(place)

        n, q = latent.shape
        drawn = latent + normal(samples, n, q) @ self.factor.T.to(kind)
        noise = self.noise.sqrt().to(kind)
        return {
            j: self.means[j].to(kind) + drawn @ self.weights[j].T.to(kind) + noise[j] * normal(samples, n, len(self.means[j]))
            for j in missing
        }

    def covariance_factor(self, index: int) -> Float[Tensor, "d q"]:
        """F with conditional covariance F F' + s_m^2 I of modality `index`, if it is missing."""
        return self.weights[index] @ self.factor

    def expected_error(self, index: int) -> float:
        """E ||z - zhat||^2 of modality `index` under the model: the trace of its conditional covariance."""
        spread = self.covariance_factor(index).square().sum()
        return float(spread + self.noise[index] * len(self.means[index]))

    def log_likelihood(self, values: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, " n"]:
        """Log-density (nats) of the observed entries of every item, float64; Woodbury, no d x d solve."""
        doubles = [value.double() for value in values]
        latent = self.latent(doubles)
        # r'C^-1 r as the smallest value of ||r - W b||^2 / s^2 + ||b||^2: a sum of squares, where the difference of the usual
        # form loses all digits once the noise is small.
        quadratic = latent.square().sum(dim=1)
        for j, value in zip(self.observed, doubles, strict=True):
            quadratic = quadratic + (value - self.mean(j, latent)).square().sum(dim=1) / self.noise[j]
        return -0.5 * (quadratic + self.log_volume)

    @property
    def log_volume(self) -> Float[Tensor, ""]:
        """log |2 pi C| of the covariance C of the observed coordinates."""
        return sum((len(self.means[j]) * torch.log(2 * math.pi * self.noise[j]) for j in self.observed), self.log_determinant)
