"""Each missing modality read off the observed ones by attention (Knowledge Bridger as CalMRL's authors compare it)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._networks import (
    MLP,
    NetworkImputer,
    dropped,
    gaussian_surprise,
    linear,
    mean_shown,
    small_normal,
)

HEADS = 4


@imputers.register("attention")
@dataclass(eq=False)
class AttentionPredictor(NetworkImputer):
    """Predicts a modality by attention over the other ones: Knowledge Bridger (Ke et al. 2025) as CalMRL's authors compare it, without its language model.

    Each observed modality is a token A_m z_m + e_m; a learned query for each target attends to them (four heads, dropout); prediction of modality j =
    MLP_j of the result, with a learned variance for each modality; loss = mean over the observed j of -log p(z_j) a coordinate, predicted from the
    other observed ones. An item that shows one modality teaches nothing. They use hidden 1024 on 512-dimensional embeddings. Fitted on
    complete and incomplete rows; options are those of `NetworkImputer` (`hidden` a multiple of 4).

    >>> import numpy as np
    >>> from calmrl_lab.imputers import AttentionPredictor
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = AttentionPredictor().fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % HEADS:
            raise CalmrlError(f"hidden is {self.hidden!r}, expected a multiple of {HEADS}, the number of attention heads")

    def build(self, dims: Sequence[int], generator: torch.Generator | None) -> nn.Module:
        return _AttentionNetwork(dims, self.hidden, self.dropout, generator)

    def loss(self, values: Sequence[Tensor], seen: Tensor, generator: torch.Generator) -> Tensor:
        assert isinstance(self.network, _AttentionNetwork)
        tokens = self.network.tokens(values)
        able = seen & (seen.sum(dim=1, keepdim=True) >= 2)
        terms = []
        for j, value in enumerate(values):
            given = seen.clone()
            given[:, j] = False
            predicted = self.network.prediction(tokens, given, j, generator)
            terms.append(gaussian_surprise(value, predicted, self.network.noise[j]))
        return mean_shown(torch.stack(terms, dim=1), able).sum() / able.any(dim=1).sum().clamp_min(1)

    def predict(self, values: Sequence[Tensor], shown: Tensor) -> list[Tensor]:
        assert isinstance(self.network, _AttentionNetwork)
        tokens = self.network.tokens(values)
        return [self.network.prediction(tokens, shown, j, None) for j in range(len(values))]


class _AttentionNetwork(nn.Module):
    def __init__(self, dims: Sequence[int], hidden: int, dropout: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.lifts = nn.ModuleList(linear(d, hidden, generator) for d in dims)
        self.places = small_normal(len(dims), hidden, generator=generator)
        self.queries = small_normal(len(dims), hidden, generator=generator)
        self.ask, self.key, self.value, self.out = (linear(hidden, hidden, generator) for _ in range(4))
        self.predictors = nn.ModuleList(MLP(hidden, hidden, d, dropout, generator) for d in dims)
        self.noise = nn.Parameter(torch.zeros(len(dims)))
        self.dropout = dropout

    def tokens(self, values: Sequence[Float[Tensor, "n d_m"]]) -> Float[Tensor, "n k h"]:
        """A_m z_m + e_m of every modality."""
        return torch.stack([lift(value) for lift, value in zip(self.lifts, values, strict=True)], dim=1) + self.places

    def prediction(
        self, tokens: Float[Tensor, "n k h"], given: Bool[Tensor, "n k"], index: int, generator: torch.Generator | None
    ) -> Float[Tensor, "n d"]:
        """Modality `index` from the tokens of the modalities `given`; some finite vector where none is."""
        n, k, h = tokens.shape
        asked = self.ask(self.queries[index]).view(HEADS, h // HEADS)
        keys, values = (layer(tokens).view(n, k, HEADS, h // HEADS) for layer in (self.key, self.value))
        scores = torch.einsum("ad,nkad->nak", asked, keys) / (h // HEADS) ** 0.5
        # Finite, so that an item with nothing given gives equal weights (dropped afterwards) and not NaN in the gradient.
        weights = dropped(scores.masked_fill(~given.unsqueeze(1), -1e9).softmax(dim=2), self.dropout, generator)
        read = torch.einsum("nak,nkad->nad", weights, values).reshape(n, h)
        predicted: Tensor = self.predictors[index](self.out(read), generator)
        return predicted
