"""Features of one modality on their principal axes, partly whitened: what PPCA of raw features is fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

# A coordinate whose deviation is below this share of the common one carries rounding only.
CONSTANT = 1e-6
# Principal components weaker than this share of the strongest are rounding.
_RANK = 1e-5


@dataclass(frozen=True)
class WhitenedPCA:
    """The map factor * axes' (x - centre) / scale: standardised features on their principal axes.

    `centre`, `scale` [d], `axes` [d, r] (orthonormal), `deviation` [r] (of the components before `factor`), `factor` [r]; float64.
    """

    centre: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    axes: Float[Tensor, "d r"]
    deviation: Float[Tensor, " r"]
    factor: Float[Tensor, " r"]

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"], components: int) -> Self:
        """From at least two `rows` (float64), with at most `components` axes, none of them mere rounding; coordinates that never vary keep the
        common scale."""
        centre, scale = standardiser(rows)
        return cls._on_axes(rows, centre, scale, components)

    @classmethod
    def of_coordinates(cls, rows: Float[Tensor, "n r"], components: int) -> Self:
        """The same for coordinates whose deviations mean something and are left as they are (`KernelPCA`)."""
        return cls._on_axes(rows, rows.mean(dim=0), torch.ones_like(rows[0]), components)

    @classmethod
    def _on_axes(cls, rows: Tensor, centre: Tensor, scale: Tensor, components: int) -> Self:
        standard = (rows - centre) / scale
        n, d = standard.shape
        # The smaller of the two moment matrices; the other one has the same spectrum.
        if d <= n:
            values, axes = torch.linalg.eigh(standard.T @ standard / n)
            values, axes = values.flip(0).clamp_min(0), axes.flip(1)
        else:
            values, left = torch.linalg.eigh(standard @ standard.T / n)
            values, left = values.flip(0).clamp_min(0), left.flip(1)
            axes = standard.T @ left / (n * values).clamp_min(1e-300).sqrt()
        deviation = values.sqrt()
        kept = max(1, min(components, int((deviation > _RANK * deviation[0]).sum())))
        deviation = deviation[:kept].clamp_min(1e-12)
        return cls(centre, scale, axes[:, :kept], deviation, torch.ones_like(deviation))

    def whitened(self, components: int, degree: float) -> Self:
        """At most `components` axes, each divided by its deviation to the power `degree` (0 keeps the deviations, 1 makes them equal), with a
        mean square of 1 all together."""
        deviation = self.deviation[:components]
        factor = deviation.pow(-degree)
        factor = factor / (deviation * factor).square().mean().sqrt()
        return type(self)(self.centre, self.scale, self.axes[:, :components], deviation, factor)

    def apply(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n r"]:
        """Components of `rows`, float64."""
        return ((rows.double() - self.centre) / self.scale) @ (self.axes * self.factor)

    def backwards(self, components: Float[Tensor, " r"]) -> Float[Tensor, " d"]:
        """The features whose components these are."""
        return self.centre + self.scale * (self.axes @ (components / self.factor))

    def through(self, weights: Float[Tensor, "r q"]) -> Float[Tensor, "d q"]:
        """`weights` on components as weights on centred features: (x - x0) @ this = (apply(x) - apply(x0)) @ weights."""
        return ((self.axes * self.factor) / self.scale.unsqueeze(1)) @ weights


def standardiser(rows: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean and deviation of every coordinate of `rows`; coordinates that never vary keep the common deviation, or, where none
    varies, the largest value."""
    centre = rows.mean(dim=0)
    spread = (rows - centre).square().mean(dim=0).sqrt()
    common, largest = spread.square().mean().sqrt(), rows.abs().max()
    if common <= 8 * torch.finfo(rows.dtype).eps * largest:
        # Nothing varies but the rounding of the mean, which is not to be blown up.
        common = torch.where(largest > 0, largest, 1.0)
    return centre, torch.where(spread > CONSTANT * common, spread, common)
