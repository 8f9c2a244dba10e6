"""Latent maps: affine maps of the features of one modality to the natural parameters of PPCA's latent posterior.

Under PPCA (arXiv 2511.12034, section 4) z^m = W^m beta + mu^m + noise, the features of one modality say beta ~ N(V_m h_m, V_m) with information
vector h_m = W^m' (z^m - mu^m) / s_m^2 and precision V_m^-1 = I + G_m, G_m = W^m' W^m / s_m^2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.linalg.positive_definite import inverse

Embedding = Literal["mean", "precision"]
EMBEDDINGS: tuple[Embedding, ...] = get_args(Embedding)


@dataclass(frozen=True)
class LatentMaps:
    """The information vectors of k modalities as affine maps of their features: h_m = maps_m' (x - centres_m).

    `centres` k of [d_m], `maps` k of [d_m, q], `precisions` [k, q, q] (G_m), all float64.
    """

    modalities: tuple[str, ...]
    centres: tuple[Float[Tensor, " d_m"], ...]
    maps: tuple[Float[Tensor, "d_m q"], ...]
    precisions: Float[Tensor, "k q q"]
    _known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def latent_dim(self) -> int:
        """q."""
        return self.precisions.shape[1]

    def information_vector(self, index: int, features: Float[Tensor, "n d_m"]) -> Float[Tensor, "n q"]:
        """h of `features` of modality `index`, float64."""
        centre, weight = self.centres[index].to(features.device), self.maps[index].to(features.device)
        return (features.double() - centre) @ weight

    def embedding_weights(self, kind: Embedding) -> list[Float[Tensor, "d_m q"]]:
        """Weights A_m such that A_m' (x - centres_m) is the embedding of modality m: what linear heads can start from.

        mean: the posterior mean V_m h_m = E[beta | x]. precision: the same in units of the typical posterior deviation, H^-1/2 V_m h_m with
        H the mean of the V_m, so that latent directions of which every modality is unsure count less.
        """
        covariances = inverse(torch.eye(self.latent_dim, dtype=torch.float64) + self.precisions)
        if kind == "mean":
            return [weight @ covariance for weight, covariance in zip(self.maps, covariances, strict=True)]
        if kind == "precision":
            units = _power(covariances.mean(dim=0), -0.5)
            return [weight @ covariance @ units for weight, covariance in zip(self.maps, covariances, strict=True)]
        raise CalmrlError(f"unknown embedding '{kind}' of a start by PPCA", hint=f"known: {', '.join(EMBEDDINGS)}")

    def noise_scaled(self, scale: float) -> Self:
        """The same model with all noise variances times `scale`: fitted to few items, PPCA takes chance for structure and is too sure."""
        return replace(self, maps=tuple(weight / scale for weight in self.maps), precisions=self.precisions / scale)

    def of_information_vectors(self) -> Self:
        """The same model for information vectors h_m in place of features: all that a change of the noise scale has to compute again."""
        centres = tuple(torch.zeros(self.latent_dim, dtype=torch.float64) for _ in self.modalities)
        maps = tuple(torch.eye(self.latent_dim, dtype=torch.float64) for _ in self.modalities)
        return replace(self, centres=centres, maps=maps)

    def log_density_ratio(
        self, query: int, shown: Sequence[int], queries: Float[Tensor, "a q"], items: Float[Tensor, "b q"]
    ) -> Float[Tensor, "a b"]:
        """log p(x, y) - log p(x) - log p(y) of all pairs (nats), y being the features of the modalities `shown` together.

        It is the log of int p(beta | x) p(beta | y) / p(beta) dbeta. `queries` are the information vectors of x, `items` the sums of those of y:
        what an item shows adds up. The ratio is bilinear but for two terms: queries' V items + `query_term` + `item_term`, V the covariance
        given all of them.
        """
        both = self.covariance(query, *shown).to(queries.device)
        own = self.query_term(query, shown, queries).unsqueeze(1)
        return queries @ both @ items.T + own + self.item_term(query, shown, items)

    def query_term(self, query: int, shown: Sequence[int], queries: Float[Tensor, "a q"]) -> Float[Tensor, " a"]:
        """What of `log_density_ratio` depends on the query and on which modalities an item shows."""
        both, alone, there = (self._posterior(seen) for seen in ((query, *shown), (query,), tuple(shown)))
        gained = (both[0] - alone[0]).to(queries.device)
        return 0.5 * ((queries @ gained) * queries).sum(dim=1) + 0.5 * (both[1] - alone[1] - there[1]).to(queries.device)

    def item_term(self, query: int, shown: Sequence[int], items: Float[Tensor, "b q"]) -> Float[Tensor, " b"]:
        """What of `log_density_ratio` depends on the item and on the modality of the query."""
        gained = (self.covariance(query, *shown) - self.covariance(*shown)).to(items.device)
        return 0.5 * ((items @ gained) * items).sum(dim=1)

    def covariance(self, *observed: int) -> Float[Tensor, "q q"]:
        """Posterior covariance of the latent vector given these modalities, whatever their values."""
        return self._posterior(observed)[0]

    def _posterior(self, observed: tuple[int, ...]) -> tuple[Float[Tensor, "q q"], Float[Tensor, ""]]:
        """The covariance and the log of its determinant; kept, for scores are computed tile by tile."""
        if observed not in self._known:
            precision = torch.eye(self.latent_dim, dtype=torch.float64) + self.precisions[list(observed)].sum(dim=0)
            matrix = inverse(precision)
            self._known[observed] = (matrix, torch.linalg.slogdet(matrix)[1])
        return self._known[observed]

    def state(self) -> dict[str, np.ndarray]:
        """Everything as named arrays, for safetensors."""
        named = {f"centre_{m}": c for m, c in zip(self.modalities, self.centres, strict=True)}
        named |= {f"map_{m}": w for m, w in zip(self.modalities, self.maps, strict=True)}
        return {**{key: value.cpu().numpy() for key, value in named.items()}, "precisions": self.precisions.cpu().numpy()}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], modalities: Sequence[str]) -> Self:
        """The inverse of `state`."""
        found = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
        centres = tuple(found[f"centre_{m}"] for m in modalities)
        maps = tuple(found[f"map_{m}"] for m in modalities)
        return cls(tuple(modalities), centres, maps, found["precisions"])


def _power(matrix: Float[Tensor, "q q"], exponent: float) -> Float[Tensor, "q q"]:
    """A power of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp_min(1e-300).pow(exponent)) @ vectors.T
