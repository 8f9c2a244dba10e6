"""A small masked autoencoder: hide modalities at random, learn to bring them back."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from calmrl_lab.data.patterns import Observations, Pattern
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._blocks import Blocks
from calmrl_lab.imputers.base import Imputer, co_observed, number, refuse_unconnected, whole


@imputers.register("autoencoder")
@dataclass(eq=False)
class MaskedAutoencoder(Imputer):
    """A two-layer network from what is shown to everything, trained to restore modalities that are hidden at random.

    Input: all modalities side by side, zeros in the gaps, and the mask. A tenth of the items decides when to stop. The
    non-linear rival of PPCA: worth its cost only if it beats it.

    hidden: width of both hidden layers. epochs: at most this many passes. learning_rate: of AdamW. dropout: of hidden units.
    seed: of initial weights, hiding and order.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import MaskedAutoencoder
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = MaskedAutoencoder().fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "autoencoder"

    hidden: int = 256
    epochs: int = 200
    learning_rate: float = 1e-3
    dropout: float = 0.2
    seed: int = 0

    blocks: Blocks = field(init=False, repr=False, default_factory=Blocks)
    network: nn.Sequential = field(init=False, repr=False, default_factory=nn.Sequential)

    def __post_init__(self) -> None:
        self.hidden, self.epochs = whole(self.hidden, "hidden", 1), whole(self.epochs, "epochs", 1)
        self.learning_rate = number(self.learning_rate, "learning_rate", above=True)
        self.dropout = number(self.dropout, "dropout", below=1.0)
        self.seed = whole(self.seed, "seed", 0)

    def _fit(self, data: Observations) -> None:
        refuse_unconnected(co_observed(data), self.name, self.modalities)
        self.blocks = Blocks.of(data)
        values, seen = self.blocks.scaled(data)
        usable = seen.any(dim=1)
        values, seen = values[usable].float(), seen[usable]
        # Unit variance per coordinate on average, as networks like it; dropout must not touch the global generator.
        values = values * self._gain()
        generator = torch.Generator().manual_seed(self.seed)
        self.network = self._build(values.shape[1], seen.shape[1], generator)
        order = torch.randperm(len(values), generator=generator)
        kept = max(1, len(values) // 10)
        check, train = order[:kept], order[kept:] if len(order) > kept else order
        checked = self._hide(seen[check], generator)
        optimiser = torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate, weight_decay=0.01)
        best, best_state, waited = float("inf"), copy.deepcopy(self.network.state_dict()), 0
        for epoch in range(self.epochs):
            for batch in torch.split(train[torch.randperm(len(train), generator=generator)], 128):
                shown = self._hide(seen[batch], generator)
                loss = self._loss(values[batch], seen[batch], shown, generator)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            if epoch % 5 == 4:
                with torch.no_grad():
                    score = float(self._loss(values[check], seen[check], checked, None))
                waited = 0 if score < best else waited + 1
                if score < best:
                    best, best_state = score, copy.deepcopy(self.network.state_dict())
                if waited >= 4:
                    break
        self.network.load_state_dict(best_state)

    def _gain(self) -> float:
        return (sum(self.blocks.dims) / len(self.blocks.dims)) ** 0.5

    def _build(self, size: int, k: int, generator: torch.Generator | None) -> nn.Sequential:
        widths = [size + k, self.hidden, self.hidden, size]
        layers: list[nn.Module] = []
        for into, out in itertools.pairwise(widths):
            # Without the default initialisation, which would draw from the global generator.
            layer = nn.utils.skip_init(nn.Linear, into, out)
            if generator is not None:
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)
            layers += [layer, nn.GELU()]
        return nn.Sequential(*layers[:-1])

    def _hide(self, seen: Bool[Tensor, "n k"], generator: torch.Generator) -> Bool[Tensor, "n k"]:
        """Each observed modality hidden with a chance drawn for its item; one always stays."""
        rate = torch.rand(len(seen), 1, generator=generator)
        draw = torch.rand(seen.shape, generator=generator).masked_fill(~seen, -1.0)
        shown = seen & (draw > rate)
        keep = torch.zeros_like(seen).scatter_(1, draw.argmax(dim=1, keepdim=True), True)
        return shown | keep

    def _loss(
        self,
        values: Float[Tensor, "n d"],
        seen: Bool[Tensor, "n k"],
        shown: Bool[Tensor, "n k"],
        generator: torch.Generator | None,
    ) -> Tensor:
        restored = self._restore_all(values, shown, generator)
        target = self.blocks.expand(seen & ~shown)
        return ((restored - values).square() * target).sum() / target.sum().clamp(min=1)

    def _restore_all(self, values: Tensor, shown: Tensor, generator: torch.Generator | None) -> Tensor:
        state = torch.cat([values * self.blocks.expand(shown), shown.to(values)], dim=1)
        for layer in self.network:
            state = layer(state)
            if generator is not None and isinstance(layer, nn.GELU):
                kept = torch.rand(state.shape, generator=generator) >= self.dropout
                state = state * kept / (1 - self.dropout)
        return state

    @torch.no_grad()
    def _fill(self, data: Observations, pattern: Pattern) -> dict[int, Tensor]:
        values, seen = self.blocks.scaled(data.take(pattern.rows))
        if not pattern.observed:
            return {j: self.blocks.restored(values, j).to(data.device) for j in pattern.missing}
        restored = self._restore_all(values.float() * self._gain(), seen, None).double() / self._gain()
        return {j: self.blocks.restored(restored, j).to(data.device) for j in pattern.missing}

    def state(self) -> dict[str, np.ndarray]:
        options = np.array([self.hidden, self.epochs, self.learning_rate, self.dropout, self.seed], dtype=np.float64)
        weights = {f"network.{name}": value.numpy() for name, value in self.network.state_dict().items()}
        return {**self.blocks.state(), **weights, "options": options}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        hidden, epochs, self.learning_rate, self.dropout, seed = np.asarray(state["options"]).tolist()
        self.hidden, self.epochs, self.seed = int(hidden), int(epochs), int(seed)
        self.blocks = Blocks.from_state(state)
        self.dims = self.blocks.dims
        self.network = self._build(sum(self.dims), len(self.dims), None)
        weights = {
            key.removeprefix("network."): torch.from_numpy(np.array(v))
            for key, v in state.items()
            if key.startswith("network.")
        }
        try:
            self.network.load_state_dict(weights)
        except RuntimeError:
            raise CalmrlError("this is no saved state of imputer 'autoencoder': its layers do not fit") from None
