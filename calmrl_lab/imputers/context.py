"""Each missing modality predicted from the mean of what the observed ones say (SMIL as CalMRL's authors compare it)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._networks import LOG_VARIANCE_LIMIT, MLP, NetworkImputer, gaussian_surprise, mean_shown, small_normal

# Passes with different dropout that one training step averages.
PASSES = 4


@imputers.register("context")
@dataclass(eq=False)
class ContextPredictor(NetworkImputer):
    """Predicts a modality from the mean of the encoded other ones: SMIL (Ma et al. 2021) as CalMRL's authors compare it, without meta-learning.

    context = mean over the modalities given of MLP_m(z_m) + e_m; prediction of modality j = MLP_j([context, e_j]), a mean and a log-variance;
    loss = mean over the observed j of -log p(z_j) a coordinate, predicted from the other observed ones, averaged over four dropouts of the
    predictor. An item that shows one modality teaches nothing. They use hidden 1024 on 512-dimensional embeddings. Fitted on complete and
    incomplete rows; options are those of `NetworkImputer`.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import ContextPredictor
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = ContextPredictor().fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "context"

    def build(self, dims: Sequence[int], generator: torch.Generator | None) -> nn.Module:
        return _ContextNetwork(dims, self.hidden, self.dropout, generator)

    def loss(self, values: Sequence[Tensor], seen: Tensor, generator: torch.Generator) -> Tensor:
        assert isinstance(self.network, _ContextNetwork)
        states = self.network.states(values)
        able = seen & (seen.sum(dim=1, keepdim=True) >= 2)
        total = values[0].new_zeros(len(seen))
        for _ in range(PASSES):
            terms = []
            for j, value in enumerate(values):
                given = seen.clone()
                given[:, j] = False
                mean, log_variance = self.network.prediction(states, given, j, generator)
                terms.append(gaussian_surprise(value, mean, log_variance))
            total = total + mean_shown(torch.stack(terms, dim=1), able) / PASSES
        return total.sum() / able.any(dim=1).sum().clamp_min(1)

    def predict(self, values: Sequence[Tensor], shown: Tensor) -> list[Tensor]:
        assert isinstance(self.network, _ContextNetwork)
        states = self.network.states(values)
        return [self.network.prediction(states, shown, j, None)[0] for j in range(len(values))]


class _ContextNetwork(nn.Module):
    def __init__(self, dims: Sequence[int], hidden: int, dropout: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(MLP(d, hidden, hidden, dropout, generator) for d in dims)
        self.predictors = nn.ModuleList(MLP(2 * hidden, hidden, 2 * d, dropout, generator) for d in dims)
        self.places = small_normal(len(dims), hidden, generator=generator)

    def states(self, values: Sequence[Float[Tensor, "n d_m"]]) -> Float[Tensor, "n k h"]:
        """MLP_m(z_m) + e_m of every modality."""
        encoded = [encoder(value) for encoder, value in zip(self.encoders, values, strict=True)]
        return torch.stack(encoded, dim=1) + self.places

    def prediction(
        self, states: Float[Tensor, "n k h"], given: Bool[Tensor, "n k"], index: int, generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Mean and log-variance of modality `index` from the modalities `given`."""
        weight = given.unsqueeze(2).to(states.dtype)
        context = (states * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)
        place = self.places[index].expand(len(states), -1)
        mean, log_variance = self.predictors[index](torch.cat([context, place], dim=1), generator).chunk(2, dim=1)
        return mean, log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
