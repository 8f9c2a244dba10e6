"""The log-likelihood of a query given an item's observed modalities, under the PPCA that imputes embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.data.patterns import Patterns
from calmrl_lab.errors import CalmrlError
from calmrl_lab.ppca.posterior import Posterior
from calmrl_lab.registry import known
from calmrl_lab.scorers import scorers
from calmrl_lab.scorers.base import Scorer


@scorers.register("imputer-likelihood")
class ImputerLikelihood(Scorer):
    """log p(query | what the item shows) - log p(query) under the run's PPCA imputer of embeddings (nats); for runs with --impute ppca.

    `likelihood-ratio` is the same quantity under the PPCA of features that heads start from. `imputer` is a fitted PPCA over the same embeddings, with names in its `modalities`. The second term changes nothing where queries
    rank items, and makes the scores of one item comparable where items rank queries. Needs no filling of gaps.
    """

    name = "imputer-likelihood"
    needs: ClassVar[tuple[str, ...]] = ("imputer",)
    conditions: ClassVar[bool] = True
    # Log-densities of a few hundred dimensions are large numbers.
    tie = 1e-7

    def __init__(self, query: str, modalities: Sequence[str], imputer: Any = None) -> None:
        super().__init__(query, modalities)
        if (
            imputer is None
            or not all(hasattr(imputer, part) for part in ("weights", "means", "noise"))
            or len(imputer.means) == 0
        ):
            raise CalmrlError(
                "scorer 'imputer-likelihood' needs a fitted PPCA", hint="score a run that was trained with --impute ppca"
            )
        names = tuple(imputer.modalities or ())
        self._query, *self._places = (
            known(modality, names, "scorer 'imputer-likelihood': the fitted PPCA has no modality")
            for modality in (query, *self.modalities)
        )
        self._weights = [torch.as_tensor(w, dtype=torch.float64) for w in imputer.weights]
        self._means = [torch.as_tensor(mu, dtype=torch.float64) for mu in imputer.means]
        self._noise = torch.as_tensor(imputer.noise, dtype=torch.float64)
        self._posteriors: dict[tuple[int, ...], Posterior] = {}

    def _score(self, queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        own = queries - self._means[self._query].to(queries.device)
        prior = self._density(own, own.new_zeros(1, own.shape[1]), ())
        scores = own.new_empty(len(queries), len(items))
        for pattern in Patterns.of(mask):
            shown, rows = pattern.observed, pattern.rows
            if not shown:
                scores[:, rows] = 0.0
                continue
            observed = tuple(self._places[j] for j in shown)
            posterior = self._posterior(observed, queries.device)
            latent = posterior.latent([items[rows, j] for j in shown])
            density = self._density(own, latent @ posterior.weights[self._query].T, observed)
            scores[:, rows] = density - prior
        return scores

    def _density(self, own: Tensor, expected: Tensor, observed: tuple[int, ...]) -> Float[Tensor, "q g"]:
        """Log-density of centred queries around centred expectations, without the constant that all patterns share."""
        posterior = self._posterior(observed, own.device)
        noise = posterior.noise[self._query]
        factor = posterior.covariance_factor(self._query)
        # Covariance F F' + s^2 I: its inverse is (I - B'B) / s^2 with B = L^-1 F' and L L' = s^2 I + F'F.
        eye = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
        lower = torch.linalg.cholesky(noise * eye + factor.T @ factor)
        inner = torch.linalg.solve_triangular(lower, factor.T, upper=False)
        # log|F F' + s^2 I| up to d log s^2, which all patterns share.
        volume = 2 * lower.diagonal().log().sum() - factor.shape[1] * noise.log()
        quadratic = (_squared_distances(own, expected) - _squared_distances(own @ inner.T, expected @ inner.T)) / noise
        return -0.5 * (quadratic + volume)

    def _posterior(self, observed: tuple[int, ...], device: torch.device) -> Posterior:
        if observed not in self._posteriors or self._posteriors[observed].noise.device != device:
            move = [[part.to(device) for part in parts] for parts in (self._weights, self._means)]
            self._posteriors[observed] = Posterior(move[0], move[1], self._noise.to(device), observed)
        return self._posteriors[observed]


def _squared_distances(a: Float[Tensor, "q d"], b: Float[Tensor, "g d"]) -> Float[Tensor, "q g"]:
    return a.square().sum(dim=1, keepdim=True) - 2 * (a @ b.T) + b.square().sum(dim=1)
