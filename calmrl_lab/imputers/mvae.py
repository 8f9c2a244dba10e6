"""MVAE: a variational autoencoder whose posterior is the product of what each observed modality says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._networks import NetworkImputer
from calmrl_lab.imputers._vae import ExpertsNetwork, divergence_from_prior, product_of_experts, sampled
from calmrl_lab.imputers.base import whole


@imputers.register("mvae")
@dataclass(eq=False)
class MVAE(NetworkImputer):
    """A variational autoencoder whose posterior is a product of Gaussian experts, one for each observed modality (Wu and Goodman 2018).

    As CalMRL's authors compare it: posterior = product of the prior N(0, I) and the experts observed; loss = -log p of the observed modalities a
    coordinate + KL per latent coordinate, with a learned variance for each modality; a gap becomes the decoded posterior mean. Nothing is hidden in
    training, so only the prior makes the posterior of fewer modalities tell about the others. They use hidden 1024 and latent_dim 256 on
    512-dimensional embeddings. Fitted on complete and incomplete rows; further options are those of `NetworkImputer`.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import MVAE
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = MVAE().fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "mvae"

    latent_dim: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.latent_dim = whole(self.latent_dim, "latent_dim", 1)

    def build(self, dims: Sequence[int], generator: torch.Generator | None) -> nn.Module:
        return ExpertsNetwork(dims, self.hidden, self.latent_dim, self.dropout, generator)

    def loss(self, values: Sequence[Tensor], seen: Tensor, generator: torch.Generator) -> Tensor:
        assert isinstance(self.network, ExpertsNetwork)
        mean, variance = product_of_experts(*self.network.experts(values, generator), seen)
        latent = sampled(mean, variance, generator)
        return (self.network.surprise(values, seen, latent, generator) + divergence_from_prior(mean, variance)).mean()

    def predict(self, values: Sequence[Tensor], shown: Tensor) -> list[Tensor]:
        assert isinstance(self.network, ExpertsNetwork)
        mean, _ = product_of_experts(*self.network.experts(values), shown)
        return [decoder(mean) for decoder in self.network.decoders]
