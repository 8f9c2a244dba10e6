"""Feature maps: what a projection sees of the features of one modality (scaled, centred, as kernel principal components); fitted once, then fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.linalg.floating_range import range_scale, unit_rows
from calmrl_lab.linalg.kernel_pca import KernelPCA
from calmrl_lab.linalg.whitened_pca import CONSTANT

Scaling = Literal["raw", "scaled", "centred", "standardised"]


class FeatureMap(Protocol):
    """A fixed map of features [n, `inputs`] to what a projection sees of them [n, `dim`]."""

    @property
    def inputs(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n i"]: ...

    def to(self, device: torch.device | str) -> Self: ...


@dataclass(frozen=True)
class Identity:
    """Features as they are."""

    inputs: int

    @property
    def dim(self) -> int:
        """The number of features."""
        return self.inputs

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """`features`."""
        return features

    def to(self, device: torch.device | str) -> Self:
        """Itself: there is nothing to move."""
        return self


@dataclass(frozen=True)
class UnitNorm:
    """Features divided by their Euclidean norm; a row of zeros stays zero."""

    inputs: int

    @property
    def dim(self) -> int:
        """The number of features."""
        return self.inputs

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Rows of norm one, float32 at least: features are stored in half precision, in which norms are too coarse."""
        return unit_rows(features.to(torch.promote_types(features.dtype, torch.float32)))

    def to(self, device: torch.device | str) -> Self:
        """Itself: there is nothing to move."""
        return self


@dataclass(frozen=True)
class Affine:
    """(features - centre) / scale, with `centre` and `scale` [d] in the dtype of the features that they were fitted to."""

    centre: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]

    @property
    def inputs(self) -> int:
        """d."""
        return len(self.centre)

    @property
    def dim(self) -> int:
        """d."""
        return len(self.centre)

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The scaled features."""
        return (features - self.centre) / self.scale

    def to(self, device: torch.device | str) -> Self:
        """The same map on another device."""
        return type(self)(self.centre.to(device), self.scale.to(device))


@dataclass(frozen=True)
class Chain:
    """Feature maps one after the other."""

    maps: tuple[FeatureMap, ...]

    @property
    def inputs(self) -> int:
        """The number of values that the first map takes."""
        return self.maps[0].inputs

    @property
    def dim(self) -> int:
        """The number of values that the last map gives."""
        return self.maps[-1].dim

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n i"]:
        """What the last map makes of what the others made."""
        for one in self.maps:
            features = one(features)
        return features

    def to(self, device: torch.device | str) -> Self:
        """The same maps on another device."""
        return type(self)(tuple(one.to(device) for one in self.maps))


@dataclass(frozen=True)
class SideBySide:
    """What several maps make of the same features, in one row: the input of joined projections, each of which has a map of its own."""

    maps: tuple[FeatureMap, ...]

    @property
    def inputs(self) -> int:
        """The number of features, which is the same for all maps."""
        return self.maps[0].inputs

    @property
    def dim(self) -> int:
        """The values of all maps together."""
        return sum(one.dim for one in self.maps)

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n i"]:
        """The values of the first map, then those of the second, and so on."""
        return torch.cat([one(features) for one in self.maps], dim=-1)

    def to(self, device: torch.device | str) -> Self:
        """The same maps on another device."""
        return type(self)(tuple(one.to(device) for one in self.maps))


def fit_scaling(rows: Float[Tensor, "n d"], how: Scaling) -> Identity | Affine:
    """The map that gives `rows` a mean squared norm of one.

    scaled: as they are; centred: about their mean; standardised: about their mean and with the same variance in every coordinate (coordinates
    that never vary keep the common scale); raw: no scaling at all.
    """
    if how == "raw":
        return Identity(rows.shape[1])
    largest = rows.abs().max()
    unit = range_scale(float(largest))
    rows, largest = rows / unit, largest / unit
    centre = torch.zeros_like(rows[0]) if how == "scaled" else rows.mean(dim=0)
    scale = (rows - centre).square().sum(dim=1).mean().sqrt()
    if scale <= 4 * torch.finfo(rows.dtype).eps * largest:
        # Nothing varies but the rounding of the mean, which is not to be blown up.
        scale = torch.where(largest > 0, largest, 1.0)
    scale = scale.expand(rows.shape[1])
    if how == "standardised":
        spread = (rows - centre).square().mean(dim=0).sqrt() * rows.shape[1] ** 0.5
        scale = torch.where(spread > CONSTANT * scale, spread, scale)
    return Affine(centre * unit, scale * unit)


# ---- Saving: every kind of map has a name, and is either made of tensors (fields of a dataclass) or of other maps. ----

Kind = TypeVar("Kind", bound=type)
_OF_ONE_NUMBER: dict[str, Any] = {"identity": Identity, "unit-norm": UnitNorm}
_KINDS: dict[str, Any] = {"affine": Affine, "kernel-pca": KernelPCA, "chain": Chain, "side-by-side": SideBySide}


def feature_map_kind(name: str) -> Callable[[Kind], Kind]:
    """Decorator that lets maps of a dataclass whose fields are tensors be saved under `name`."""

    def file(kind: Kind) -> Kind:
        _KINDS[name] = kind
        return kind

    return file


def described(one: FeatureMap, prefix: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `read` needs: a description that fits into JSON, and tensors by name, all names beginning with `prefix`."""
    for kind, made in _OF_ONE_NUMBER.items():
        if type(one) is made:
            return {"kind": kind, "inputs": one.inputs}, {}
    name = next((name for name, kind in _KINDS.items() if type(one) is kind), None)
    if name is None:
        raise CalmrlError(f"feature maps of {type(one).__name__} cannot be saved", hint="name it with @feature_map_kind")
    if not isinstance(one, Chain | SideBySide):
        return {"kind": name}, {f"{prefix}{field.name}": getattr(one, field.name) for field in fields(one)}  # type: ignore[arg-type]
    parts: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for number, part in enumerate(one.maps):
        description, found = described(part, f"{prefix}{number}/")
        parts.append(description)
        tensors |= found
    return {"kind": name, "maps": parts}, tensors


def read(description: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str = "") -> FeatureMap:
    """The map that `described` described. Raises CalmrlError for a kind that is not known here, KeyError for a tensor that is missing."""
    name = description["kind"]
    if name in _OF_ONE_NUMBER:
        simple: FeatureMap = _OF_ONE_NUMBER[name](int(description["inputs"]))
        return simple
    if name not in _KINDS:
        raise CalmrlError(f"unknown feature map '{name}'", hint=f"known: {', '.join([*_OF_ONE_NUMBER, *_KINDS])}")
    if "maps" in description:
        parts = (read(part, tensors, f"{prefix}{number}/") for number, part in enumerate(description["maps"]))
        made: FeatureMap = _KINDS[name](tuple(parts))
        return made
    leaf: FeatureMap = _KINDS[name](**{field.name: tensors[f"{prefix}{field.name}"] for field in fields(_KINDS[name])})
    return leaf


def identities(dims: Sequence[int]) -> tuple[FeatureMap, ...]:
    """Features as they are, for modalities of these dimensions."""
    return tuple(Identity(dim) for dim in dims)
