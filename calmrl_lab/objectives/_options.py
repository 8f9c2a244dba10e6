"""Checks of options that several objectives share."""

from __future__ import annotations

import math

import torch

from calmrl_lab.errors import CalmrlError


def positive(objective: str, option: str, value: float) -> float:
    """`value` if it is a finite number above zero; CalmrlError naming the option otherwise."""
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise CalmrlError(f"objective '{objective}': {option} must be a finite number above 0, got {value!r}")
    return float(value)


class LearnedTemperature(torch.nn.Module):
    """1 / temperature as exp(parameter), at most 100, as CLIP trains it; starts at `initial`."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.tensor(-math.log(initial)))

    def forward(self) -> torch.Tensor:
        """The factor that multiplies similarities."""
        return self.log_scale.clamp(max=math.log(100.0)).exp()
