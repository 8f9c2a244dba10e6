"""A mixture of PPCAs: each component has its own means and its own relations between modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.data.patterns import Array, Observations, Pattern
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._estimator import Modalities
from calmrl_lab.imputers.base import Imputer, number, refuse_unconnected, refuse_unobserved, whole
from calmrl_lab.imputers.group_mean import GroupMean
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.ppca.statistics import Statistics, observed_means


@imputers.register("ppca-mixture")
@dataclass(eq=False)
class MixturePPCA(Imputer):
    """Mixture of PPCAs fitted by EM over items; a gap is filled with the components' conditional means, weighted by how likely
    each made the item.

    Starts from k-means. Every pass assigns the items softly, by likelihood of what they show, and gives each component a few EM
    iterations on its share of the statistics. A component also sees all items with a small weight (`pooling`), so that one with
    few items, or without some modality, falls back on the whole. For data with clusters, which one Gaussian cannot have.

    components: how many. latent_dim: q of each. ridge: pseudo-items of the prior on W in each. pooling: weight of all items in
    every component, as a share of its own. passes: over the rows. seed: of k-means.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import MixturePPCA
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = MixturePPCA(latent_dim=2).fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "ppca-mixture"

    components: int = 8
    latent_dim: int = 16
    ridge: float = 10.0
    pooling: float = 0.2
    passes: int = 8
    seed: int = 0

    parts: list[PPCA] = field(init=False, repr=False, default_factory=list)
    shares: np.ndarray = field(init=False, repr=False, default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        self.components = whole(self.components, "components", 1)
        self.latent_dim = whole(self.latent_dim, "latent_dim", 1)
        self.ridge, self.pooling = number(self.ridge, "ridge"), number(self.pooling, "pooling", above=True)
        self.passes, self.seed = whole(self.passes, "passes", 1), whole(self.seed, "seed", 0)

    def fit(self, embeddings: Modalities, mask: Array | None = None) -> Self:
        """Learn from `embeddings` (k of [N, d_m]) where `mask` [N, k] is True. Raises CalmrlError as `PPCA.fit` does."""
        data = self._observe(embeddings, mask)
        refuse_unobserved(data, self.name)
        self._fit(data)
        self.dims = data.dims
        return self

    def _fit(self, data: Observations) -> None:
        shift = observed_means(data)
        everything = Statistics.of(data, shift)
        refuse_unconnected(everything.co_observed(), self.name, self.modalities)
        whole_model = PPCA(self.latent_dim, ridge=self.ridge)
        whole_model.modalities = self.modalities
        whole_model.fit_statistics(everything, 20)
        belongs = self._first_guess(data)
        self.parts = [whole_model] * belongs.shape[1]
        for turn in range(self.passes):
            if turn:
                belongs = self._responsibilities(data)
            self.shares = np.maximum(belongs.mean(dim=0).cpu().numpy(), 1e-6)
            self.parts = [self._part(data, everything, belongs[:, c], self.parts[c]) for c in range(belongs.shape[1])]

    def _first_guess(self, data: Observations) -> Float[Tensor, "n c"]:
        clusters = GroupMean(clusters=self.components, seed=self.seed)
        clusters._fit(data)
        values, seen = clusters.blocks.scaled(data)
        belongs = torch.nn.functional.one_hot(clusters._nearest(values, seen), len(clusters.centres))
        return belongs.double().to(data.device)

    def _part(self, data: Observations, everything: Statistics, weights: Float[Tensor, " n"], before: PPCA) -> PPCA:
        rows = torch.nonzero(weights > 1e-4).squeeze(1)
        own = Statistics(data.dims, everything.shift, data.device)
        if len(rows):
            own.add(data.take(rows), weights=weights[rows])
            for sums in own.patterns.values():
                # A responsibility is a share of an item, not a scale of it.
                sums.count = sums.weight
        share = self.pooling * max(float(weights.sum()), 1.0) / len(data)
        part = PPCA(self.latent_dim, ridge=self.ridge)
        part.modalities = self.modalities
        return part.fit_statistics(own.merged(everything.scaled(share)), 5, start=before)

    def _log_densities(self, data: Observations) -> Float[Tensor, "n c"]:
        density = torch.zeros(len(data), len(self.parts), dtype=torch.float64, device=data.device)
        density += torch.from_numpy(np.log(self.shares)).to(data.device)
        for pattern in data.patterns():
            if pattern.observed:
                values = [data.values[j][pattern.rows] for j in pattern.observed]
                for c, part in enumerate(self.parts):
                    density[pattern.rows, c] += part.posterior(pattern.observed, data.device).log_likelihood(values)
        return density

    def _responsibilities(self, data: Observations) -> Float[Tensor, "n c"]:
        return torch.softmax(self._log_densities(data), dim=1)

    def _fill(self, data: Observations, pattern: Pattern) -> dict[int, Tensor]:
        here = data.take(pattern.rows)
        belongs = self._responsibilities(here)
        alone = Pattern(pattern.observed, pattern.missing, torch.arange(len(here), device=here.device))
        filled: dict[int, Tensor] = {}
        for c, part in enumerate(self.parts):
            for j, values in part._fill(here, alone).items():
                share = belongs[:, c : c + 1].to(values.dtype) * values
                filled[j] = filled[j] + share if j in filled else share
        return filled

    def log_likelihood(self, embeddings: Sequence[Array], mask: Array) -> Array:
        """Log-density (nats, float64) of the observed entries of every item [N]; 0 for an item that shows nothing."""
        data = self._observe_fitted(embeddings, mask)
        density = torch.logsumexp(self._log_densities(data) - np.log(self.shares.sum()), dim=1)
        return data.returned(torch.where(data.mask.any(dim=1), density, 0.0))

    def predicted_error(self, embeddings: Sequence[Array], mask: Array) -> Array:
        """Expected ||z - zhat||^2 of every filled entry [N, k] (float64): within components and between them; 0 where
        observed."""
        data = self._observe_fitted(embeddings, mask)
        result = torch.zeros(data.mask.shape, dtype=torch.float64, device=data.device)
        for pattern in data.patterns():
            if not pattern.missing:
                continue
            here = data.take(pattern.rows)
            belongs = self._responsibilities(here)
            mixed = self._fill(data, pattern)
            alone = Pattern(pattern.observed, pattern.missing, torch.arange(len(here), device=here.device))
            for c, part in enumerate(self.parts):
                posterior = part.posterior(pattern.observed, data.device)
                for j, values in part._fill(here, alone).items():
                    between = (values - mixed[j]).double().square().sum(dim=1)
                    result[pattern.rows, j] += belongs[:, c] * (posterior.expected_error(j) + between)
        return data.returned(result)

    def state(self) -> dict[str, np.ndarray]:
        """The parameters of every component, its share, and the options."""
        named = {f"part{c}/{key}": value for c, part in enumerate(self.parts) for key, value in part.state().items()}
        options: list[Any] = [self.components, self.latent_dim, self.ridge, self.pooling, self.passes, self.seed]
        return {**named, "shares": self.shares, "options": np.array(options, dtype=np.float64)}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        components, latent_dim, self.ridge, self.pooling, passes, seed = np.asarray(state["options"]).tolist()
        self.components, self.latent_dim, self.passes, self.seed = int(components), int(latent_dim), int(passes), int(seed)
        self.shares = np.asarray(state["shares"])
        self.parts = []
        for c in range(len(self.shares)):
            own = {key.removeprefix(f"part{c}/"): value for key, value in state.items() if key.startswith(f"part{c}/")}
            self.parts.append(PPCA.from_state(own))
        self.dims = self.parts[0].dims
