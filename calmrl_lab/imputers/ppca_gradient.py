"""PPCA fitted by gradient on its plug-in likelihood, as CalMRL's released parameters appear to have been."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from calmrl_lab.data.patterns import Array, Observations
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._estimator import Modalities
from calmrl_lab.imputers.base import number, refuse_unconnected, refuse_unobserved, whole
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.linalg.floating_range import centred
from calmrl_lab.ppca.posterior import Posterior
from calmrl_lab.ppca.statistics import Statistics

# Options that say how EM goes, with their defaults: gradient steps have no use for them.
OF_EM = {"shared_noise": False, "ridge": 0.0, "accelerate": False, "tolerance": 0.0, "initialisation": "pairwise"}


@imputers.register("ppca-gradient")
@dataclass(eq=False)
class PPCAGradient(PPCA):
    """The model of `ppca`, fitted by Adam on its plug-in likelihood instead of by EM: what CalMRL's released parameters appear to be.

    Inferred from the released files ("adam", a log of sigma, one loss in the code), not known. Loss: the sum over observed modalities of the mean, over
    items and coordinates, of (z - W m - mu)^2 / (2 s^2) + log(2 pi s^2) / 2, with m the posterior mean of the latent vector, without gradient. The
    posterior's covariance is left out, so W is not shrunk and grows with the number of steps: this is not maximum likelihood, and worse than EM where
    latent_dim is too large (docs/imputation.md). It is there to show what that costs.

    latent_dim: q, a number. steps, learning_rate, batch_size: of Adam; they are not published, these are ours. seed: of the start (W drawn from
    N(0, 0.02^2), mean 0, variance 1, each modality about its mean in units of its standard deviation) and of the batches.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import PPCAGradient
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = PPCAGradient(latent_dim=2).fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "ppca-gradient"

    steps: int = 500
    learning_rate: float = 0.01
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_dim == "auto":
            raise CalmrlError("imputer 'ppca-gradient' has no latent_dim 'auto'", hint="give a number, or use ppca")
        for option, default in OF_EM.items():
            if getattr(self, option) != default:
                raise CalmrlError(f"imputer 'ppca-gradient': {option} is an option of EM", hint="use ppca with it")
        self.steps, self.batch_size = whole(self.steps, "steps", 1), whole(self.batch_size, "batch_size", 1)
        self.learning_rate = number(self.learning_rate, "learning_rate", above=True)
        self.seed = whole(self.seed, "seed", 0)

    def fit(self, embeddings: Modalities, mask: Array | None = None, iterations: int = 50, start: Any = None) -> Self:
        """`steps` steps of Adam on `embeddings` (k of [N, d_m]) where `mask` [N, k] is True, from `start` or a random one; `iterations` are those of EM
        and not used. Raises CalmrlError as `PPCA.fit`."""
        data = self._observe(embeddings, mask)
        refuse_unobserved(data, self.name)
        refuse_unconnected((statistics := Statistics.of(data)).co_observed(), self.name, self.modalities)
        q = int(self.latent_dim)
        if q >= sum(data.dims):
            raise CalmrlError(
                f"latent_dim is {q}, but the modalities have only {sum(data.dims)} dimensions together",
                hint=f"use at most {sum(data.dims) - 1}",
            )
        values, seen = [value.cpu().double() for value in data.values], data.mask.cpu()
        centres, deviations = zip(*(centred(value[seen[:, j]]) for j, value in enumerate(values)), strict=True)
        varying = [deviation.square().mean().sqrt() for deviation in deviations]
        spreads = [spread.clamp_min(1e-12) for spread in varying]
        scaled = [
            ((value - centre) / spread).masked_fill(~seen[:, j : j + 1], 0.0)
            for j, (value, centre, spread) in enumerate(zip(values, centres, spreads, strict=True))
        ]
        generator = torch.Generator().manual_seed(self.seed)
        if start is None:
            weights = [0.02 * torch.randn(d, q, generator=generator, dtype=torch.float64) for d in data.dims]
            means = [torch.zeros(d, dtype=torch.float64) for d in data.dims]
            log_sigma = torch.zeros(len(data.dims), dtype=torch.float64)
        else:
            given = self._started(start, statistics, q)
            shifted = (given.mean + torch.cat(statistics.shift)).split(data.dims)
            weights = [w.cpu() / s for w, s in zip(given.weights.split(data.dims), spreads, strict=True)]
            means = [(mu.cpu() - c) / s for mu, c, s in zip(shifted, centres, spreads, strict=True)]
            log_sigma = (given.noise.cpu().sqrt() / torch.stack(spreads)).log()
        fitted = _descend(scaled, seen, (weights, means, log_sigma), self, generator)
        # A modality that never varies says nothing about the others: its W is 0.
        self.weights = [(w * s).numpy() for w, s in zip(fitted[0], varying, strict=True)]
        self.means = [(mu * s + c).numpy() for mu, s, c in zip(fitted[1], spreads, centres, strict=True)]
        self.noise = ((2 * fitted[2]).exp() * torch.stack(spreads).square()).numpy()
        self.dims, self._posteriors = data.dims, {}
        self.log_likelihoods = np.array([_total_likelihood(self, data)])
        return self

    def state(self) -> dict[str, np.ndarray]:
        """As `PPCA.state`, with the options of Adam under `adam`."""
        adam = [self.steps, self.learning_rate, self.batch_size, self.seed]
        return {**super().state(), "adam": np.array(adam, dtype=np.float64)}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        super()._restore(state)
        steps, self.learning_rate, batch_size, seed = np.asarray(state["adam"]).tolist()
        self.steps, self.batch_size, self.seed = int(steps), int(batch_size), int(seed)


def _descend(
    values: Sequence[Tensor],
    seen: Tensor,
    start: tuple[list[Tensor], list[Tensor], Tensor],
    options: PPCAGradient,
    generator: torch.Generator,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """W, mu and log sigma after the steps of Adam."""
    weights, means, log_sigma = [w.clone().requires_grad_() for w in start[0]], [m.clone() for m in start[1]], start[2].clone()
    parameters = [*weights, *(m.requires_grad_() for m in means), log_sigma.requires_grad_()]
    optimiser = torch.optim.Adam(parameters, lr=options.learning_rate)
    items = seen.any(dim=1).nonzero().flatten()
    order = items[:0]
    for _ in range(options.steps):
        if len(order) == 0:
            order = items[torch.randperm(len(items), generator=generator)]
        batch, order = order[: options.batch_size], order[options.batch_size :]
        loss = plug_in_loss([value[batch] for value in values], seen[batch], weights, means, log_sigma)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return [w.detach() for w in weights], [m.detach() for m in means], log_sigma.detach()


def plug_in_loss(
    values: Sequence[Tensor], seen: Tensor, weights: Sequence[Tensor], means: Sequence[Tensor], log_sigma: Tensor
) -> Tensor:
    """Sum over modalities of the mean, over the items that show one and its coordinates, of -log N(z; W m + mu, s^2) at the posterior mean m.

    `values` k of [n, d_m], `seen` [n, k], `weights` k of [d_m, q], `means` k of [d_m], `log_sigma` [k], float64. m has no gradient.
    """
    latent = values[0].new_zeros(len(seen), weights[0].shape[1])
    with torch.no_grad():
        noise = (2 * log_sigma).exp()
        patterns, which = torch.unique(seen, dim=0, return_inverse=True)
        for index, pattern in enumerate(patterns.tolist()):
            observed = [j for j, shown in enumerate(pattern) if shown]
            rows = (which == index).nonzero().flatten()
            if observed:
                posterior = Posterior(weights, means, noise, observed)
                latent[rows] = posterior.latent([values[j][rows] for j in observed])
    loss = log_sigma.sum() * 0.0
    for j, value in enumerate(values):
        shown = seen[:, j]
        residual = (value - latent @ weights[j].T - means[j])[shown]
        if len(residual):
            loss = loss + residual.square().mean() / (2 * (2 * log_sigma[j]).exp()) + log_sigma[j] + 0.5 * np.log(2 * np.pi)
    return loss


def _total_likelihood(imputer: PPCAGradient, data: Observations) -> float:
    found = 0.0
    for pattern in data.patterns():
        if pattern.observed:
            rows = [data.values[j][pattern.rows] for j in pattern.observed]
            found += float(imputer.posterior(pattern.observed, data.device).log_likelihood(rows).sum())
    return found
