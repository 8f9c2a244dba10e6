"""What one modality alone says about the latent vector of PPCA: embeddings in closed form, and the overlap of two posteriors.

Under PPCA (arXiv 2511.12034, section 4) z^m = W^m beta + mu^m + noise, the features of one modality say beta ~ N(V_m h_m, V_m) with evidence
h_m = W^m' (z^m - mu^m) / s_m^2 and precision V_m^-1 = I + G_m, G_m = W^m' W^m / s_m^2.
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
from calmrl_lab.linalg.kernel_pca import KernelPCA, read_kernels
from calmrl_lab.linalg.positive_definite import inverse

Embedding = Literal["mean", "precision"]
EMBEDDINGS: tuple[Embedding, ...] = get_args(Embedding)


@dataclass(frozen=True)
class LatentMaps:
    """The evidence of k modalities as affine maps of their features: h_m = maps_m' (x - centres_m).

    `centres` k of [d_m], `maps` k of [d_m, q], `precisions` [k, q, q] (G_m), all float64. With `kernels`, one a modality, x are the kernel
    principal components of the features, and d_m is their number.
    """

    modalities: tuple[str, ...]
    centres: tuple[Float[Tensor, " d_m"], ...]
    maps: tuple[Float[Tensor, "d_m q"], ...]
    precisions: Float[Tensor, "k q q"]
    kernels: tuple[KernelPCA, ...] | None = None
    _known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def latent_dim(self) -> int:
        return self.precisions.shape[1]

    def information_vector(self, index: int, features: Float[Tensor, "n d_m"]) -> Float[Tensor, "n q"]:
        """h of `features` of modality `index`, float64."""
        centre, weight = self.centres[index].to(features.device), self.maps[index].to(features.device)
        if self.kernels is not None:
            features = self.kernels[index].to(features.device)(features)
        return (features.double() - centre) @ weight

    def embedding_weights(self, kind: Embedding) -> list[Float[Tensor, "d_m q"]]:
        """Weights A_m such that A_m' (x - centres_m) is the embedding of modality m: what linear heads can start from.

        mean: the posterior mean V_m h_m = E[beta | x]. precision: the same in units of the typical posterior deviation, H^-1/2 V_m h_m with
        H the mean of the V_m, so that latent directions nobody is sure of count less.
        """
        covariances = inverse(torch.eye(self.latent_dim, dtype=torch.float64) + self.precisions)
        if kind == "mean":
            return [weight @ covariance for weight, covariance in zip(self.maps, covariances, strict=True)]
        if kind == "precision":
            units = _power(covariances.mean(dim=0), -0.5)
            return [weight @ covariance @ units for weight, covariance in zip(self.maps, covariances, strict=True)]
        raise CalmrlError(f"unknown embedding '{kind}' of a start by PPCA", hint=f"known: {', '.join(EMBEDDINGS)}")

    def tempered(self, scale: float) -> Self:
        """The same model with all noise variances times `scale`: fitted to few items, PPCA takes chance for structure and is too sure."""
        return replace(self, maps=tuple(weight / scale for weight in self.maps), precisions=self.precisions / scale)

    def of_evidence(self) -> Self:
        """The same model for evidence h_m in place of features: nothing but what a change of `tempered` has to compute again."""
        centres = tuple(torch.zeros(self.latent_dim, dtype=torch.float64) for _ in self.modalities)
        maps = tuple(torch.eye(self.latent_dim, dtype=torch.float64) for _ in self.modalities)
        return replace(self, centres=centres, maps=maps, kernels=None)

    def compared(
        self, query: int, gallery: int, queries: Float[Tensor, "a d_a"], candidates: Float[Tensor, "b d_b"]
    ) -> tuple[Float[Tensor, "a r"], Float[Tensor, "b r"]]:
        """Vectors of features of two modalities whose inner product is log p(x, y) - log p(x) - log p(y), up to a term a query.

        That is the log of the overlap of the two posteriors of beta, int p(beta | x) p(beta | y) / p(beta) dbeta: how much likelier the two
        belong to one item than to two. Unlike a cosine it knows how sure each modality is, and in which directions.
        """
        h, g = self.information_vector(query, queries), self.information_vector(gallery, candidates)
        both = self.covariance(query, gallery).to(h.device)
        own = self.item_term(query, [gallery], g).unsqueeze(1)
        return torch.cat([h @ both, torch.ones_like(h[:, :1])], dim=1), torch.cat([g, own], dim=1)

    def log_density_ratio(
        self, query: int, shown: Sequence[int], asked: Float[Tensor, "a q"], evidence: Float[Tensor, "b q"]
    ) -> Float[Tensor, "a b"]:
        """log p(x, y) - log p(x) - log p(y) of all pairs (nats), y being the features of the modalities `shown` together.

        `asked` is the evidence of x and `evidence` the sum of the evidences of y: what an item shows adds up. It is bilinear but for two
        terms: asked' B evidence + `query_term` + `item_term`, B the covariance given all of them.
        """
        both = self.covariance(query, *shown).to(asked.device)
        own = self.query_term(query, shown, asked).unsqueeze(1)
        return asked @ both @ evidence.T + own + self.item_term(query, shown, evidence)

    def query_term(self, query: int, shown: Sequence[int], asked: Float[Tensor, "a q"]) -> Float[Tensor, " a"]:
        """What of `log_density_ratio` depends on the query and on which modalities an item shows."""
        both, alone, there = (self._posterior(seen) for seen in ((query, *shown), (query,), tuple(shown)))
        gained = (both[0] - alone[0]).to(asked.device)
        return 0.5 * ((asked @ gained) * asked).sum(dim=1) + 0.5 * (both[1] - alone[1] - there[1]).to(asked.device)

    def item_term(self, query: int, shown: Sequence[int], evidence: Float[Tensor, "b q"]) -> Float[Tensor, " b"]:
        """What of `log_density_ratio` depends on the item and on which modality asks."""
        gained = (self.covariance(query, *shown) - self.covariance(*shown)).to(evidence.device)
        return 0.5 * ((evidence @ gained) * evidence).sum(dim=1)

    def covariance(self, *observed: int) -> Float[Tensor, "q q"]:
        """Posterior covariance of the latent vector given these modalities, whatever their values."""
        return self._posterior(observed)[0]

    def _posterior(self, observed: tuple[int, ...]) -> tuple[Float[Tensor, "q q"], Float[Tensor, ""]]:
        """The covariance and the log of its determinant; kept, for scores are asked for tile by tile."""
        if observed not in self._known:
            precision = torch.eye(self.latent_dim, dtype=torch.float64) + self.precisions[list(observed)].sum(dim=0)
            matrix = inverse(precision)
            self._known[observed] = (matrix, torch.linalg.slogdet(matrix)[1])
        return self._known[observed]

    def state(self) -> dict[str, np.ndarray]:
        """Everything as named arrays, for safetensors."""
        named = {f"centre_{m}": c for m, c in zip(self.modalities, self.centres, strict=True)}
        named |= {f"map_{m}": w for m, w in zip(self.modalities, self.maps, strict=True)}
        for m, kernel in zip(self.modalities, self.kernels or (), strict=bool(self.kernels)):
            named |= {f"kernel_{m}_{part}": value for part, value in kernel.state().items()}
        return {**{key: value.cpu().numpy() for key, value in named.items()}, "precisions": self.precisions.cpu().numpy()}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], modalities: Sequence[str]) -> Self:
        """The inverse of `state`."""
        found = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
        centres = tuple(found[f"centre_{m}"] for m in modalities)
        maps = tuple(found[f"map_{m}"] for m in modalities)
        return cls(
            tuple(modalities), centres, maps, found["precisions"], read_kernels(found, [f"kernel_{m}_" for m in modalities])
        )


def _power(matrix: Float[Tensor, "q q"], exponent: float) -> Float[Tensor, "q q"]:
    """A power of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp_min(1e-300).pow(exponent)) @ vectors.T
