"""PPCA with Student-t tails: items far from everything else count less."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.data.patterns import Array, Observations
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._estimator import Modalities
from calmrl_lab.imputers.base import refuse_unobserved, whole
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.ppca.em import Totals, iterate
from calmrl_lab.ppca.statistics import Statistics

_DEGREES = (2.5, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 512.0)


@imputers.register("ppca-student")
@dataclass(eq=False)
class StudentPPCA(PPCA):
    """PPCA whose items have a scale of their own, drawn from a Gamma distribution: the joint distribution is a multivariate t.

    Outliers, which the paper names as its model's limit, are weighted down by (nu + D) / (nu + distance^2), with the degrees of
    freedom nu chosen by likelihood. Weights depend on rows, so every `passes` is one over the data, followed by a few EM
    iterations on the weighted statistics (exact, for given weights). Imputation is the same linear function of what is
    observed; `predicted_error` grows with how unusual the item is.

    passes: of re-weighting. latent_dim, shared_noise, ridge: as in PPCA. After `fit`: `degrees` (nu), and `log_likelihoods`
    under the t model, one per pass.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import StudentPPCA
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = StudentPPCA(latent_dim=2).fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "ppca-student"

    passes: int = 5

    degrees: float = field(init=False, repr=False, default=float("inf"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_dim == "auto":
            raise CalmrlError("imputer 'ppca-student' cannot choose latent_dim itself", hint="give a number, or use ppca-auto")
        self.passes = whole(self.passes, "passes", 1)

    def fit(self, embeddings: Modalities, mask: Array | None = None, iterations: int = 50, start: Any = None) -> Self:
        """`iterations` EM iterations on Gaussian statistics, then `passes` of re-weighting with five more each."""
        data = self._observe(embeddings, mask)
        refuse_unobserved(data, self.name)
        gaussian = Statistics.of(data)
        self._fit_statistics(gaussian, whole(self.latent_dim, "latent_dim", 1), whole(iterations, "iterations", 0), start)
        likelihoods = []
        for _ in range(self.passes):
            distance, size, log_volume = self._distances(data)
            shown = size > 0
            found = {nu: float(_t_likelihood(distance[shown], size[shown], log_volume[shown], nu).sum()) for nu in _DEGREES}
            self.degrees = max(found, key=lambda nu: found[nu])
            likelihoods.append(found[self.degrees])
            weights = (self.degrees + size) / (self.degrees + distance)
            statistics = Statistics(data.dims, gaussian.shift, data.device)
            statistics.add(data, weights=weights)
            totals = Totals.of(statistics)
            parameters = self._started(self, statistics, self.weights[0].shape[1])
            parameters, _ = iterate(statistics, totals, parameters, 5, self._noise_kind, float(self.ridge))
            self._adopt(parameters, statistics, likelihoods)
        return self

    def fit_statistics(self, statistics: Statistics, iterations: int = 50, start: Any = None) -> Self:
        """Not possible: weights depend on the rows. Raises CalmrlError."""
        raise CalmrlError("imputer 'ppca-student' weights items and so needs the rows", hint="use fit, or the imputer 'ppca'")

    def _distances(self, data: Observations) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Squared Mahalanobis distance, observed coordinates and log-determinant of their covariance, for every item."""
        distance, size, volume = torch.zeros(3, len(data), dtype=torch.float64, device=data.device)
        for pattern in data.patterns():
            if not pattern.observed:
                continue
            posterior = self.posterior(pattern.observed, data.device)
            count = sum(data.dims[j] for j in pattern.observed)
            log_volume = posterior.log_volume - count * math.log(2 * math.pi)
            density = posterior.log_likelihood([data.values[j][pattern.rows] for j in pattern.observed])
            distance[pattern.rows] = (-2 * density - posterior.log_volume).clamp(min=0)
            size[pattern.rows], volume[pattern.rows] = float(count), float(log_volume)
        return distance, size, volume

    def log_likelihood(self, embeddings: Sequence[Array], mask: Array) -> Array:
        """Log-density (nats, float64) of the observed entries of every item [N] under the t model; 0 for an item that shows
        nothing."""
        data = self._observe_fitted(embeddings, mask)
        distance, size, volume = self._distances(data)
        return data.returned(torch.where(size > 0, _t_likelihood(distance, size, volume, self.degrees), 0.0))

    def predicted_error(self, embeddings: Sequence[Array], mask: Array) -> Array:
        """Expected ||z - zhat||^2 of every filled entry [N, k] (float64) under the t model; 0 where observed."""
        data = self._observe_fitted(embeddings, mask)
        gaussian = torch.as_tensor(super().predicted_error(embeddings, mask)).to(data.device)
        distance, size, _ = self._distances(data)
        scale = (self.degrees + distance) / (self.degrees + size - 2).clamp(min=0.5)
        return data.returned(gaussian * scale.unsqueeze(1))

    def state(self) -> dict[str, np.ndarray]:
        """As `PPCA.state`, with the passes and the degrees of freedom."""
        return super().state() | {"student": np.array([self.passes, self.degrees])}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        super()._restore(state)
        passes, self.degrees = np.asarray(state["student"]).tolist()
        self.passes = int(passes)


def _t_likelihood(distance: Tensor, size: Tensor, log_volume: Tensor, nu: float) -> Float[Tensor, " n"]:
    half = (nu + size) / 2
    constant = torch.lgamma(half) - math.lgamma(nu / 2) - 0.5 * size * math.log(nu * math.pi) - 0.5 * log_volume
    return constant - half * torch.log1p(distance / nu)
