"""Imputers that are small networks: one fitted by gradient on rows with gaps, until items held out are filled no better."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from calmrl_lab.data.patterns import Observations, Pattern
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers._blocks import Blocks
from calmrl_lab.imputers.base import Imputer, co_observed, number, refuse_unconnected, whole

# Log-variances that a network predicts stay within this, variances that it divides by above that.
LOG_VARIANCE_LIMIT = 8.0
_LEAST_VARIANCE = 1e-6
_BATCH = 128
_LOOK_EVERY, _PATIENCE = 5, 4


class MLP(nn.Module):
    """Linear, LayerNorm, GELU, dropout, Linear. Initial weights and dropout come from the generator given, never from the global one."""

    def __init__(self, into: int, hidden: int, out: int, dropout: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.first, self.last = linear(into, hidden, generator), linear(hidden, out, generator)
        self.norm = nn.LayerNorm(hidden)
        self.dropout = dropout

    def forward(self, values: Float[Tensor, "n i"], generator: torch.Generator | None = None) -> Float[Tensor, "n o"]:
        """Outputs; without a `generator` nothing is dropped."""
        result: Tensor = self.last(dropped(functional.gelu(self.norm(self.first(values))), self.dropout, generator))
        return result


def linear(into: int, out: int, generator: torch.Generator | None, bias: bool = True) -> nn.Linear:
    """A linear layer by Xavier's rule from `generator`; without one its weights are left to be loaded."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, into, out, bias=bias)
    if generator is not None:
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        if bias:
            nn.init.zeros_(layer.bias)
    return layer


def small_normal(*shape: int, generator: torch.Generator | None) -> nn.Parameter:
    """A parameter drawn from N(0, 0.02^2), as learned tokens and places usually start."""
    return nn.Parameter(torch.zeros(*shape) if generator is None else 0.02 * torch.randn(*shape, generator=generator))


def dropped(values: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Inverted dropout of `values`; none without a `generator`."""
    if generator is None or rate == 0:
        return values
    return values * (torch.rand(values.shape, generator=generator) >= rate) / (1 - rate)


def gaussian_surprise(values: Float[Tensor, "n d"], mean: Float[Tensor, "n d"], log_variance: Tensor) -> Float[Tensor, " n"]:
    """-log N(values; mean, e^log_variance) of every item, mean over its coordinates (nats per coordinate).

    `log_variance` is [n, d], or a scalar for all coordinates.
    """
    variance = log_variance.exp().clamp_min(_LEAST_VARIANCE)
    return 0.5 * ((values - mean).square() / variance + log_variance + np.log(2 * np.pi)).mean(dim=1)


def mean_shown(terms: Float[Tensor, "n k"], shown: Bool[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Mean of each row's `terms` over the entries `shown`; 0 where there is none."""
    return torch.where(shown, terms, 0.0).sum(dim=1) / shown.sum(dim=1).clamp_min(1)


@dataclass(eq=False)
class NetworkImputer(Imputer):
    """An imputer whose network is trained by AdamW on all rows that show anything, complete or not.

    Subclasses say what the network is (`build`), what it minimises (`loss`) and what it fills in (`predict`); they work on a list of k modalities,
    centred, with unit variance per coordinate on average, zeros in the gaps. A tenth of the items decides when to stop: modalities are hidden from
    them once and for all, and the squared error of what is filled in their place has to fall. Computed in float32 on the CPU.

    hidden: width of hidden layers. epochs: at most this many passes. learning_rate: of AdamW. dropout: of hidden units. seed: of initial weights,
    dropout, noise, hiding and order. Optimiser, passes and stopping are ours: the published systems train these networks inside the alignment.
    """

    hidden: int = 256
    epochs: int = 200
    learning_rate: float = 1e-3
    dropout: float = 0.1
    seed: int = 0

    blocks: Blocks = field(init=False, repr=False, default_factory=Blocks)
    network: nn.Module = field(init=False, repr=False, default_factory=nn.Module)

    def __post_init__(self) -> None:
        self.hidden, self.epochs = whole(self.hidden, "hidden", 1), whole(self.epochs, "epochs", 1)
        self.learning_rate = number(self.learning_rate, "learning_rate", above=True)
        self.dropout = number(self.dropout, "dropout", below=1.0)
        self.seed = whole(self.seed, "seed", 0)

    @abstractmethod
    def build(self, dims: Sequence[int], generator: torch.Generator | None) -> nn.Module:
        """The network for modalities of these dimensions; without a `generator` its weights are left to be loaded."""

    @abstractmethod
    def loss(
        self, values: Sequence[Float[Tensor, "n d_m"]], seen: Bool[Tensor, "n k"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """What training minimises on a batch that shows `seen`."""

    @abstractmethod
    def predict(self, values: Sequence[Float[Tensor, "n d_m"]], shown: Bool[Tensor, "n k"]) -> list[Float[Tensor, "n d_m"]]:
        """Every modality of items that show `shown` (at least one each); what it says of a modality that is shown is not used."""

    def _fit(self, data: Observations) -> None:
        refuse_unconnected(co_observed(data), self.name, self.modalities)
        self.blocks = Blocks.of(data)
        rows, seen = self.blocks.scaled(data)
        usable = seen.any(dim=1)
        values, seen = self._parts(rows[usable]), seen[usable]
        generator = torch.Generator().manual_seed(self.seed)
        self.network = self.build(self.blocks.dims, generator)
        order = torch.randperm(len(seen), generator=generator)
        kept = max(1, len(seen) // 10)
        check, train = order[:kept], order[kept:] if len(order) > kept else order
        checked = hide_at_random(seen[check], generator)
        optimiser = torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate, weight_decay=0.01)
        best, best_state, waited = float("inf"), copy.deepcopy(self.network.state_dict()), 0
        for epoch in range(self.epochs):
            for batch in torch.split(train[torch.randperm(len(train), generator=generator)], _BATCH):
                loss = self.loss([value[batch] for value in values], seen[batch], generator)
                optimiser.zero_grad()
                if loss.requires_grad:
                    loss.backward()
                    optimiser.step()
            if epoch % _LOOK_EVERY == _LOOK_EVERY - 1 or epoch == self.epochs - 1:
                score = self._error([value[check] for value in values], seen[check], checked)
                waited = 0 if score < best else waited + 1
                if score < best:
                    best, best_state = score, copy.deepcopy(self.network.state_dict())
                if waited >= _PATIENCE:
                    break
        self.network.load_state_dict(best_state)

    @torch.no_grad()
    def _error(self, values: Sequence[Tensor], seen: Tensor, shown: Tensor) -> float:
        """Squared error per coordinate of what is filled in where `shown` hides what was `seen`."""
        hidden = [value.masked_fill(~shown[:, j : j + 1], 0.0) for j, value in enumerate(values)]
        errors = [(p - v).square().mean(dim=1) for p, v in zip(self.predict(hidden, shown), values, strict=True)]
        return float(torch.where(seen & ~shown, torch.stack(errors, dim=1), 0.0).sum())

    def _parts(self, rows: Float[Tensor, "n d"]) -> list[Float[Tensor, "n d_m"]]:
        return [rows[:, self.blocks.columns(j)].float() * self._gain(j) for j in range(len(self.blocks.dims))]

    def _gain(self, index: int) -> float:
        """From total variance one to variance one per coordinate."""
        return float(self.blocks.dims[index] ** 0.5)

    @torch.no_grad()
    def _fill(self, data: Observations, pattern: Pattern) -> dict[int, Tensor]:
        rows, shown = self.blocks.scaled(data.take(pattern.rows))
        if pattern.observed:
            predicted = self.predict(self._parts(rows), shown)
            for j in pattern.missing:
                rows[:, self.blocks.columns(j)] = predicted[j].double() / self._gain(j)
        return {j: self.blocks.restored(rows, j).to(data.device) for j in pattern.missing}

    def state(self) -> dict[str, np.ndarray]:
        options = np.array([float(value) for value in self.options().values()], dtype=np.float64)
        weights = {f"network.{name}": value.numpy() for name, value in self.network.state_dict().items()}
        return {**self.blocks.state(), **weights, "options": options}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        for (name, default), value in zip(self.options().items(), np.asarray(state["options"]).tolist(), strict=True):
            setattr(self, name, type(default)(value))
        self.blocks = Blocks.from_state(state)
        self.dims = self.blocks.dims
        self.network = self.build(self.dims, None)
        weights = {
            k.removeprefix("network."): torch.from_numpy(np.array(v)) for k, v in state.items() if k.startswith("network.")
        }
        try:
            self.network.load_state_dict(weights)
        except RuntimeError:
            raise CalmrlError(f"this is no saved state of imputer '{self.name}': its layers do not fit") from None


def hide_at_random(seen: Bool[Tensor, "n k"], generator: torch.Generator) -> Bool[Tensor, "n k"]:
    """`seen` with each modality hidden at a rate drawn for its item; one of each item always stays."""
    rate = torch.rand(len(seen), 1, generator=generator)
    draw = torch.rand(seen.shape, generator=generator).masked_fill(~seen, -1.0)
    keep = torch.zeros_like(seen).scatter_(1, draw.argmax(dim=1, keepdim=True), True)
    return (seen & (draw > rate)) | (keep & seen)
