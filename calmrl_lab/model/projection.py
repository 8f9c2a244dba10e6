"""Projection heads: one map a modality from its features to the common unit sphere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, Protocol, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.errors import CalmrlError
from calmrl_lab.linalg.kernel_pca import KernelPCA
from calmrl_lab.linalg.whitened_pca import CONSTANT

KINDS = ("linear", "mlp")


class Projection(Protocol):
    """What training moves: mapped features of a modality to unit-norm embeddings of `dim` dimensions."""

    kind: str
    modalities: tuple[str, ...]
    dim: int

    @property
    def inputs(self) -> list[int]: ...

    def project(self, index: int, features: Float[Tensor, "n i"]) -> Float[Tensor, "n d"]:
        """Unit-norm embeddings of modality `index`, given what its feature map makes of the features."""

    def to(self, device: torch.device | str) -> Self: ...

    def eval(self) -> Self: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


class Heads(nn.Module):
    """One head a modality. `linear` has no bias, as VAST's contra_head_*; `mlp` is Linear, GELU, Linear of the same width.

    Features are centred and scaled by fixed buffers first (zero and one unless `rescale` was called), so that encoders of
    very different scale start equal. With `kernels`, one a modality, they are first turned into kernel principal components, which are
    fixed too; `inputs` are the dimensions that heads then see, `dims` those of the features.
    """

    def __init__(
        self, dims: Mapping[str, int], dim: int, kind: str = "linear", seed: int = 0, kernels: Sequence[KernelPCA] | None = None
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise CalmrlError(f"unknown head '{kind}'", hint=f"known heads: {', '.join(KINDS)}")
        self.modalities = tuple(dims)
        self.dims = dict(dims)
        self.dim = dim
        self.kind = kind
        generator = torch.Generator().manual_seed(seed)
        self.inputs = list(dims.values()) if kernels is None else [kernel.dim for kernel in kernels]
        self.maps = nn.ModuleList(_head(kind, d, dim, generator) for d in self.inputs)
        for index, d in enumerate(self.inputs):
            self.register_buffer(f"centre_{index}", torch.zeros(d))
            self.register_buffer(f"scale_{index}", torch.ones(d))
        self.kernels = bool(kernels)
        # While True, features come as their kernel principal components already (`lift`).
        self.lifted = False
        for index, kernel in enumerate(kernels or ()):
            for part, value in kernel.state().items():
                self.register_buffer(f"kernel_{index}_{part}", value)

    def rescale(self, index: int, features: Float[Tensor, "n d_m"], how: Literal["scaled", "centred", "standardised"]) -> None:
        """Fix the scale of modality `index` so that `features` have mean squared norm one: as they are, about their mean, or about
        their mean with the same variance in every coordinate (coordinates that never vary keep the common scale)."""
        features = self.seen(index, features)
        centre = torch.zeros_like(features[0]) if how == "scaled" else features.mean(dim=0)
        scale = (features - centre).square().sum(dim=1).mean().sqrt().clamp_min(1e-12).expand(features.shape[1])
        if how == "standardised":
            spread = (features - centre).square().mean(dim=0).sqrt() * features.shape[1] ** 0.5
            scale = torch.where(spread > CONSTANT * scale, spread, scale)
        self.get_buffer(f"centre_{index}").copy_(centre)
        self.get_buffer(f"scale_{index}").copy_(scale)

    @torch.no_grad()
    def align_signs(self, features: Mapping[int, Float[Tensor, "n d_m"]]) -> None:
        """Reflect the heads so that the mean projections of all modalities in `features` point in one direction.

        A reflection changes no distance within a modality. Without it, random heads send the modalities to random sides, and objectives made
        of singular values, which cannot tell z from -z, then align some of them back to back. Modalities without a mean stay.
        """
        target: Tensor | None = None
        for index, rows in features.items():
            mean = self.maps[index](self._scaled(index, rows)).mean(dim=0)
            if float(mean.norm()) < 1e-6:
                continue
            direction = mean / mean.norm()
            if target is None:
                target = direction
                continue
            across = direction - target
            if float(across.norm()) > 1e-6:
                across = across / across.norm()
                last = self._last_layer(index)
                last.weight -= 2 * torch.outer(across, across @ last.weight)

    @torch.no_grad()
    def change_signs(self, signs: Sequence[int]) -> None:
        """Mirror the embeddings of the modalities whose sign is -1: z becomes -z exactly."""
        for index, sign in enumerate(signs):
            if sign < 0:
                self._last_layer(index).weight.neg_()

    def _last_layer(self, index: int) -> nn.Linear:
        head = self.maps[index]
        last = head if isinstance(head, nn.Linear) else head.get_submodule("2")
        # Without a bias, so that mirrored weights are mirrored embeddings.
        assert isinstance(last, nn.Linear)
        assert last.bias is None
        return last

    def load_linear(self, index: int, weight: Float[Tensor, "d d_m"]) -> None:
        """Start modality `index` from published projection weights (linear heads only)."""
        linear = self.maps[index]
        if not isinstance(linear, nn.Linear):
            raise CalmrlError("published projection weights fit linear heads only", hint="use --head linear")
        if tuple(weight.shape) != tuple(linear.weight.shape):
            raise CalmrlError(
                f"the stored head of '{self.modalities[index]}' is {tuple(weight.shape)}, expected {tuple(linear.weight.shape)}",
                hint=f"use --set dim={weight.shape[0]}",
            )
        with torch.no_grad():
            linear.weight.copy_(weight)

    @torch.no_grad()
    def load_affine(self, index: int, weight: Float[Tensor, "d i"], centre: Float[Tensor, " i"]) -> None:
        """Start modality `index` from x -> weight (x - centre) of what it sees, up to a factor (linear heads only).

        The scale of the features stays; the weights get the norm of random ones, so that one learning rate suits both starts.
        """
        linear = self.maps[index]
        if not isinstance(linear, nn.Linear):
            raise CalmrlError("a start in closed form fits linear heads only", hint="use --head linear")
        scaled = weight * self.get_buffer(f"scale_{index}").to(weight)
        usual = (linear.out_features / 3) ** 0.5
        linear.weight.copy_(scaled * (usual / scaled.norm().clamp_min(1e-30)))
        self.get_buffer(f"centre_{index}").copy_(centre)

    def project(self, index: int, features: Float[Tensor, "n d_m"]) -> Float[Tensor, "n d"]:
        """Unit-norm embeddings of modality `index`; a zero projection stays zero instead of becoming NaN."""
        return functional.normalize(self.maps[index](self._scaled(index, features)), dim=-1, eps=1e-12)

    def seen(self, index: int, features: Float[Tensor, "n d_m"]) -> Float[Tensor, "n i"]:
        """What the head of modality `index` is given: `features`, or their kernel principal components."""
        if not self.kernels or self.lifted:
            return features
        names = [field.name for field in fields(KernelPCA)]
        return KernelPCA(**{name: self.get_buffer(f"kernel_{index}_{name}") for name in names})(features)

    def lift(self, table: FeatureTable) -> FeatureTable:
        """`table` with what the heads see of its rows in their place."""
        return replace(table, rows=tuple(self.seen(index, rows) for index, rows in enumerate(table.rows)))

    def _scaled(self, index: int, features: Tensor) -> Tensor:
        return (self.seen(index, features) - self.get_buffer(f"centre_{index}")) / self.get_buffer(f"scale_{index}")

    def forward(self, features: list[Float[Tensor, "b d_m"]], mask: Bool[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        """Embeddings of a padded batch; entries under a False mask are zero and carry no gradient."""
        embeddings = torch.stack([self.project(index, rows) for index, rows in enumerate(features)], dim=1)
        return embeddings.masked_fill(~mask.unsqueeze(-1), 0.0)


def _head(kind: str, d_in: int, d_out: int, generator: torch.Generator) -> nn.Module:
    if kind == "linear":
        return _initialised(nn.Linear(d_in, d_out, bias=False), generator)
    return nn.Sequential(
        _initialised(nn.Linear(d_in, d_out), generator), nn.GELU(), _initialised(nn.Linear(d_out, d_out, bias=False), generator)
    )


def _initialised(linear: nn.Linear, generator: torch.Generator) -> nn.Linear:
    # nn.Linear's own initialisation draws from the global generator; a run must depend on its seed alone.
    bound = linear.in_features**-0.5
    with torch.no_grad():
        linear.weight.uniform_(-bound, bound, generator=generator)
        if linear.bias is not None:
            linear.bias.uniform_(-bound, bound, generator=generator)
    return linear
