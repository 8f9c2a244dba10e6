"""Checks of options that several objectives share, and the learned temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import nearest

# CLIP's limit: below this temperature float32 logits of unit vectors stop being trainable.
_COLDEST = 0.01


def positive(objective: str, option: str, value: float) -> float:
    """`value` if it is a finite number above zero; CalmrlError naming the option otherwise."""
    if not _number(value) or not math.isfinite(value) or value <= 0:
        raise CalmrlError(f"objective '{objective}': {option} must be a finite number above 0, got {value!r}")
    return float(value)


def not_negative(objective: str, option: str, value: float) -> float:
    """`value` if it is a finite number of at least zero; CalmrlError naming the option otherwise."""
    if not _number(value) or not math.isfinite(value) or value < 0:
        raise CalmrlError(f"objective '{objective}': {option} must not be negative, got {value!r}")
    return float(value)


def share(objective: str, option: str, value: float) -> float:
    """`value` if it lies in [0, 1); CalmrlError naming the option otherwise."""
    if not _number(value) or not 0 <= value < 1:
        raise CalmrlError(f"objective '{objective}': {option} must be at least 0 and below 1, got {value!r}")
    return float(value)


def one_of(objective: str, option: str, value: str, known: Sequence[str]) -> str:
    """`value` if it is among `known`; CalmrlError naming the nearest otherwise."""
    if value not in known:
        raise CalmrlError(
            f"objective '{objective}': {option} '{value}' is unknown{nearest(str(value), list(known))}",
            hint=f"known: {', '.join(known)}",
        )
    return value


def modality_index(objective: str, modalities: Sequence[str], wanted: str | None, usual: Sequence[str]) -> int:
    """Place of `wanted` among `modalities`; without a wish, of the first of `usual` that is there, else 0."""
    if wanted is None:
        return next((modalities.index(name) for name in usual if name in modalities), 0)
    if wanted not in modalities:
        raise CalmrlError(
            f"objective '{objective}': there is no modality '{wanted}'{nearest(str(wanted), list(modalities))}",
            hint=f"there are: {', '.join(modalities)}",
        )
    return modalities.index(wanted)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class LearnedTemperature(nn.Module):
    """1 / temperature, the factor that multiplies similarities; starts at `initial`, learned unless `fixed`, never below 0.01.

    `direct` trains the temperature itself, as VAST, GRAM and TRIANGLE do; otherwise the logarithm of its inverse, as CLIP does.
    """

    def __init__(self, initial: float, fixed: bool = False, direct: bool = False) -> None:
        super().__init__()
        self.direct = direct
        start = torch.tensor(initial if direct else -math.log(initial))
        if fixed:
            self.register_buffer("value", start)
        else:
            self.value = nn.Parameter(start)
        self.fixed = fixed

    def forward(self) -> Float[Tensor, ""]:
        if not self.fixed:
            # The parameter itself is held at the limit: clamping what is computed from it would end its gradient there for good.
            with torch.no_grad():
                self.value.clamp_(min=_COLDEST) if self.direct else self.value.clamp_(max=-math.log(_COLDEST))
        return 1 / self.value if self.direct else self.value.exp()
