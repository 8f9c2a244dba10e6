"""All modalities of an item side by side in one row, centred and scaled, gaps as zeros: the form of matrix methods and
networks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.data.patterns import Observations
from calmrl_lab.imputers.base import indexed
from calmrl_lab.linalg.floating_range import centred


@dataclass
class Blocks:
    """The map from embeddings to rows [N, D] and back; every modality has mean zero and total variance one over what was
    observed."""

    means: list[Tensor] = field(default_factory=list)
    scales: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def of(cls, data: Observations) -> Blocks:
        means, scales = [], []
        for j, value in enumerate(data.values):
            mean, deviations = centred(value[data.mask[:, j]].cpu().double())
            means.append(mean)
            scales.append(deviations.square().sum(dim=1).mean().sqrt())
        return cls(means, torch.stack(scales))

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(len(mean) for mean in self.means)

    def columns(self, index: int) -> slice:
        """Where modality `index` stands in a row."""
        ends = list(itertools.accumulate(self.dims, initial=0))
        return slice(ends[index], ends[index + 1])

    def scaled(self, data: Observations) -> tuple[Float[Tensor, "n d"], Bool[Tensor, "n k"]]:
        """Rows of `data` (float64, CPU, zero under a False mask), and the mask."""
        mask = data.mask.cpu()
        # A constant modality has scale zero: nothing of it goes into a row, and its mean comes out.
        divisors = torch.where(self.scales > 0, self.scales, torch.inf)
        parts = [
            ((value.cpu().double() - mean) / divisor).masked_fill(~mask[:, j : j + 1], 0.0)
            for j, (value, mean, divisor) in enumerate(zip(data.values, self.means, divisors, strict=True))
        ]
        return torch.cat(parts, dim=1), mask

    def expand(self, mask: Bool[Tensor, "n k"]) -> Bool[Tensor, "n d"]:
        """`mask` for every coordinate of a row."""
        return mask.repeat_interleave(torch.tensor(self.dims), dim=1)

    def restored(self, rows: Float[Tensor, "n d"], index: int) -> Float[Tensor, "n e"]:
        """Modality `index` of `rows`, in its own units."""
        return rows[:, self.columns(index)] * self.scales[index] + self.means[index]

    def state(self) -> dict[str, np.ndarray]:
        return {f"means.{j}": mean.numpy() for j, mean in enumerate(self.means)} | {"scales": self.scales.numpy()}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Blocks:
        means = [torch.from_numpy(np.array(mean)) for mean in indexed(state, "means")]
        return cls(means, torch.from_numpy(np.array(state["scales"])))
