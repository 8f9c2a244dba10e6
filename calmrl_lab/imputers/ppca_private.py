"""PPCA with private latents: what varies within one modality only is modelled, and kept out of what modalities share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers.em import Parameters, Totals
from calmrl_lab.imputers.initialisation import pairwise_covariance, pairwise_start
from calmrl_lab.imputers.ppca import PPCA, whole
from calmrl_lab.imputers.statistics import Statistics


@imputers.register("ppca-private")
@dataclass(eq=False)
class PrivatePPCA(PPCA):
    """z^m = W^m beta + P^m h^m + mu^m + noise: a latent vector of the item, and one for each modality that no other one sees.

    Plain PPCA has to spend shared latent dimensions on variance that is not shared, or call it noise. This is PPCA with zeros
    in the weights, so fitting costs the same EM on the same statistics. It is inter-battery factor analysis (Tucker 1958;
    Klami, Virtanen and Kaski 2013).

    latent_dim: dimensions of the shared latent vector. private_dim: those of every private one (less than the modality has).
    `weights` are k of [d_m, q], shared columns first, then those of modality 0, 1, ...; zero for other modalities' columns.
    """

    name: ClassVar[str] = "ppca-private"

    latent_dim: int | Literal["auto"] = 32
    private_dim: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_dim == "auto":
            raise CalmrlError("imputer 'ppca-private' cannot choose latent_dim itself", hint="give a number, or use ppca-auto")
        self.private_dim = whole(self.private_dim, "private_dim", 1)

    def _private(self, dims: tuple[int, ...]) -> list[int]:
        return [min(self.private_dim, d - 1) for d in dims]

    def _fit_statistics(self, statistics: Statistics, q: int, iterations: int, start: Any) -> Self:
        if start is None or q == self.latent_dim:
            q = int(self.latent_dim) + sum(self._private(statistics.dims))
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
        dims = statistics.dims
        shared = pairwise_start(statistics, totals, int(self.latent_dim), self._noise_kind)
        covariance, _ = pairwise_covariance(statistics, totals)
        weights = covariance.new_zeros(sum(dims), q)
        weights[:, : int(self.latent_dim)] = shared.weights
        noise = shared.noise.clone()
        row, column = 0, int(self.latent_dim)
        for j, (d, size) in enumerate(zip(dims, self._private(dims), strict=True)):
            rows = slice(row, row + d)
            own = shared.weights[rows]
            values, vectors = torch.linalg.eigh(covariance[rows, rows] - own @ own.T)
            strength = (values[d - size :] - noise[j]).clamp(min=1e-3 * float(noise[j]))
            weights[rows, column : column + size] = vectors[:, d - size :] * strength.sqrt()
            noise[j] = torch.maximum(noise[j] - strength.sum() / d, 0.05 * noise[j])
            row, column = row + d, column + size
        return Parameters(weights, shared.mean, torch.maximum(noise, totals.floor))

    def state(self) -> dict[str, np.ndarray]:
        """As `PPCA.state`, with `private_dim`."""
        return super().state() | {"private_dim": np.array([self.private_dim])}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        super()._restore(state)
        self.private_dim = int(state["private_dim"][0])
