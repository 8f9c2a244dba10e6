"""Projections: one map per modality from its (mapped) features to the common unit sphere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from calmrl_lab.errors import CalmrlError

KINDS = ("linear", "mlp")


class Projection(Protocol):
    """What training moves: mapped features of a modality to unit-norm embeddings of `dim` dimensions."""

    kind: str
    modalities: tuple[str, ...]
    inputs: list[int]
    dim: int

    def project(self, index: int, features: Float[Tensor, "n i"]) -> Float[Tensor, "n d"]:
        """Unit-norm embeddings of modality `index`, given what its feature map makes of the features."""

    def to(self, device: torch.device | str) -> Self: ...

    def eval(self) -> Self: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


class Heads(nn.Module):
    """One head per modality: `linear` has no bias, as VAST's contra_head_*; `mlp` is Linear, GELU, Linear of the same width.

    `inputs` are the modalities and the dimensions of what heads are given: features, or what a feature map made of them.
    """

    def __init__(self, inputs: Mapping[str, int], dim: int, kind: str = "linear", seed: int = 0) -> None:
        super().__init__()
        if kind not in KINDS:
            raise CalmrlError(f"unknown head '{kind}'", hint=f"known heads: {', '.join(KINDS)}")
        self.modalities = tuple(inputs)
        self.inputs = list(inputs.values())
        self.dim = dim
        self.kind = kind
        generator = torch.Generator().manual_seed(seed)
        self.maps = nn.ModuleList(_head(kind, d, dim, generator) for d in self.inputs)

    @torch.no_grad()
    def align_signs(self, features: Mapping[int, Float[Tensor, "n i"]]) -> None:
        """Reflect the heads so that the mean projections of all modalities in `features` point in one direction.

        A reflection changes no distance within a modality. Without it, random heads send the modalities to random sides, and objectives made
        of singular values, which cannot tell z from -z, then align some of them back to back. Modalities without a mean stay.
        """
        target: Tensor | None = None
        for index, rows in features.items():
            mean = self.maps[index](rows).mean(dim=0)
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

    @torch.no_grad()
    def turn(self, index: int, rotation: Float[Tensor, "d d"]) -> None:
        """Multiply the embeddings of one modality by an orthogonal matrix: rows z become z @ `rotation`."""
        last = self._last_layer(index)
        last.weight.copy_((rotation.T @ last.weight.double().cpu()).to(last.weight))

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
    def load_direction(self, index: int, weight: Float[Tensor, "d i"]) -> None:
        """Start modality `index` from `weight` up to a factor (linear heads only): with the norm of random weights, so that one learning rate
        suits both starts."""
        linear = self.maps[index]
        if not isinstance(linear, nn.Linear):
            raise CalmrlError("a start in closed form fits linear heads only", hint="use --head linear")
        usual = (linear.out_features / 3) ** 0.5
        linear.weight.copy_(weight * (usual / weight.norm().clamp_min(1e-30)))

    def project(self, index: int, features: Float[Tensor, "n i"]) -> Float[Tensor, "n d"]:
        """Unit-norm embeddings of modality `index`; a zero projection stays zero instead of becoming NaN."""
        return functional.normalize(self.maps[index](features), dim=-1, eps=1e-12)

    def forward(self, features: list[Float[Tensor, "b i"]], mask: Bool[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
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
