"""The device a command computes on, and transfers to it."""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_lab.errors import CalmrlError


def resolve(device: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU. CalmrlError for a device this machine does not have."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise CalmrlError(f"'{device}' is not a device", hint="cpu, cuda, cuda:1, ... or auto") from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise CalmrlError(
            f"device '{device}' was asked for, but torch sees no GPU", hint="use --device cpu, or see calmrl-lab doctor"
        )
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise CalmrlError(f"device '{device}' was asked for, but there are only {torch.cuda.device_count()} GPUs")
    return resolved


def send(values: Tensor, device: torch.device) -> Tensor:
    """Host `values` on `device`, without the host waiting: through pinned memory to a GPU, whose work goes on meanwhile."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
