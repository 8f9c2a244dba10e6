"""PPCA with private latents: what varies within one modality only is modelled, and kept out of what modalities share."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers.base import whole
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.ppca.em import Parameters, Totals
from calmrl_lab.ppca.initialisation import pairwise_covariance, top_eigenvectors
from calmrl_lab.ppca.statistics import Statistics


@imputers.register("ppca-private")
@dataclass(eq=False)
class PrivatePPCA(PPCA):
    """z^m = W^m beta + P^m h^m + mu^m + noise: a latent vector of the item, and one for each modality that no other one sees.

    Plain PPCA has to spend shared latent dimensions on variance that is not shared, or call it noise. This is PPCA with zeros
    in the weights, so fitting costs the same EM on the same statistics. It is inter-battery factor analysis (Tucker 1958;
    Klami, Virtanen and Kaski 2013).

    latent_dim: dimensions of the shared latent vector. private_dim: those of every private one (less than the modality has).
    `weights` are k of [d_m, q], shared columns first, then those of modality 0, 1, ...; zero for other modalities' columns.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import PrivatePPCA
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = PrivatePPCA(latent_dim=2, private_dim=1).fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "ppca-private"

    latent_dim: int | Literal["auto"] = 32
    private_dim: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_dim == "auto":
            raise CalmrlError("imputer 'ppca-private' cannot choose latent_dim itself", hint="give a number, or use ppca-auto")
        if self.initialisation != "pairwise":
            raise CalmrlError("imputer 'ppca-private' starts from pairwise moments only", hint="use the imputer 'ppca'")
        self.private_dim = whole(self.private_dim, "private_dim", 1)

    def _private(self, dims: tuple[int, ...]) -> list[int]:
        return [min(self.private_dim, d - 1) for d in dims]

    def _fit_statistics(self, statistics: Statistics, q: int, iterations: int, start: Any) -> Self:
        if start is None or q == self.latent_dim:
            q = int(self.latent_dim) + sum(self._private(statistics.dims))
        if q >= sum(statistics.dims):
            raise CalmrlError(
                f"latent_dim {self.latent_dim} and private_dim {self.private_dim} make {q} latent dimensions, "
                f"but the modalities have only {sum(statistics.dims)} dimensions together",
                hint="lower private_dim or latent_dim",
            )
        return super()._fit_statistics(statistics, q, iterations, start)

    def _columns(self, dims: tuple[int, ...], q: int, device: torch.device) -> list[Tensor]:
        private = self._private(dims)
        columns = []
        begun = int(self.latent_dim)
        for size in private:
            used = torch.zeros(q, dtype=torch.bool, device=device)
            used[: int(self.latent_dim)] = True
            used[begun : begun + size] = True
            columns.append(used)
            begun += size
        return columns

    def _initial(self, statistics: Statistics, totals: Totals, q: int) -> Parameters:
        """Shared components from covariances between modalities only, private ones from what is then left within each."""
        dims = statistics.dims
        covariance, _ = pairwise_covariance(statistics, totals)
        place = [slice(a, b) for a, b in itertools.pairwise(itertools.accumulate(dims, initial=0))]
        spread = torch.stack([covariance[rows, rows].trace() / d for rows, d in zip(place, dims, strict=True)])
        variance = torch.maximum(spread, totals.floor)
        scale = variance.sqrt().repeat_interleave(torch.tensor(dims, device=covariance.device))
        between = covariance.clone()
        for rows in place:
            between[rows, rows] = 0.0
        strengths, directions = top_eigenvectors(between, between.float(), 1 / scale, int(self.latent_dim))
        shared = scale.unsqueeze(1) * directions[:, : int(self.latent_dim)]
        shared = shared * strengths[: int(self.latent_dim)].clamp(min=1e-3).sqrt()

        weights = covariance.new_zeros(sum(dims), q)
        noise = torch.empty_like(variance)
        column = int(self.latent_dim)
        for j, (rows, size) in enumerate(zip(place, self._private(dims), strict=True)):
            # Sampling noise may let the shared part explain more than there is.
            # Rounding may leave a constant modality a spread below zero.
            most = 0.9 * max(float(spread[j]), 0.0) * dims[j]
            own = shared[rows] * min(1.0, (most / max(float(shared[rows].square().sum()), 1e-300)) ** 0.5)
            weights[rows, : int(self.latent_dim)] = own
            values, vectors = torch.linalg.eigh(covariance[rows, rows] - own @ own.T)
            left = values[: dims[j] - size].mean().clamp(min=0.01 * float(variance[j]))
            strength = (values[dims[j] - size :] - left).clamp(min=1e-3 * float(left))
            weights[rows, column : column + size] = vectors[:, dims[j] - size :] * strength.sqrt()
            noise[j] = left
            column += size
        means = torch.cat([total / n for total, n in zip(totals.total, totals.weight, strict=True)])
        return Parameters(weights, means, torch.maximum(noise, totals.floor))

    def state(self) -> dict[str, np.ndarray]:
        """As `PPCA.state`, with `private_dim`."""
        return super().state() | {"private_dim": np.array([self.private_dim])}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        super()._restore(state)
        self.private_dim = int(state["private_dim"][0])
