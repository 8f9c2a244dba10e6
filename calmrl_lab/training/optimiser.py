"""One update of the parameters, and the metrics of an epoch's steps; on a GPU without waiting for either."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from calmrl_lab.runtime.distributed import average_gradients

# Steps between two looks at what a GPU computed.
LOOK_EVERY = 64


class NonFiniteStep(NamedTuple):
    """The first step whose loss or gradient is not finite: its number, the terms that are not, and the items [b] of its batch."""

    step: int
    terms: list[str]
    items: Int[Tensor, " b"]


def make_optimiser(parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW as VAST, GRAM and PMRL use it; on a GPU the fused one, which can skip a step (see `update`)."""
    parameters = list(parameters)
    fused = bool(parameters) and all(parameter.device.type == "cuda" for parameter in parameters)
    return torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay, **({"fused": True} if fused else {})
    )


def update(
    loss: Float[Tensor, ""], optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], clip_norm: float | None
) -> Float[Tensor, ""]:
    """One step of `optimiser` down the gradient of `loss`, clipped to `clip_norm` (None: not at all); returns the norm it had.

    Parameters, moments and weight decay stay as they are where the gradient is zero everywhere, as it is for a batch without a valid
    term, and where it is not finite. Under torchrun gradients are averaged over the processes first.
    """
    optimiser.zero_grad(set_to_none=True)
    if not loss.requires_grad:
        return torch.zeros_like(loss)
    loss.backward()
    average_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if clip_norm is None else clip_norm)
    still = (norm == 0) | ~torch.isfinite(norm)
    if optimiser.param_groups[0].get("fused"):
        # What torch.amp does for a step whose gradients overflowed: the kernels read the flag, the host does not.
        optimiser.found_inf = still.float()  # type: ignore[attr-defined]
        optimiser.step()
    elif not bool(still):
        optimiser.step()
    return norm


class StepMetrics:
    """Sums of the terms of an epoch's steps, the batches that taught nothing, and the first step that is not finite.

    Nothing is read back from a GPU but every `look_every` steps and at the end.
    """

    def __init__(self, device: torch.device, look_every: int | None = None) -> None:
        self._every = look_every or (1 if device.type == "cpu" else LOOK_EVERY)
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=device))
        self._idle = torch.zeros((), dtype=torch.int64, device=device)
        self._unread: list[tuple[int, Int[Tensor, " b"], Mapping[str, Tensor], Tensor]] = []
        self.steps = 0

    def write(
        self, step: int, items: Int[Tensor, " b"], terms: Mapping[str, Tensor], norm: Float[Tensor, ""]
    ) -> NonFiniteStep | None:
        """Enter a step: its number, the items of its batch, its terms and the norm of its gradient. Returns the first step that is not finite, once it was looked at."""
        values = {name: value.detach() for name, value in terms.items()}
        for name, value in values.items():
            self._sums[name] += value.double()
        self._idle += norm == 0
        self.steps += 1
        finite = torch.isfinite(values["loss"]) & torch.isfinite(norm)
        self._unread.append((step, items, values, finite))
        return self.look() if len(self._unread) >= self._every else None

    def look(self) -> NonFiniteStep | None:
        """The first step not looked at yet that is not finite, if there is one."""
        unread, self._unread = self._unread, []
        if not unread:
            return None
        for (step, items, values, _), fine in zip(unread, torch.stack([entry[3] for entry in unread]).tolist(), strict=True):
            if not fine:
                terms = [name for name, value in values.items() if not bool(torch.isfinite(value))]
                return NonFiniteStep(step, terms or ["gradient"], items)
        return None

    def means(self) -> dict[str, float]:
        """Mean of every term over the steps."""
        return {name: float(value) / max(self.steps, 1) for name, value in self._sums.items()}

    def idle(self) -> int:
        """How many steps had a gradient of zero, or none."""
        return int(self._idle)
