"""Several embeddings of an item to one, for whatever subset the item shows."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

MOST = 6


class ConcatHeads(nn.Module):
    """normalize(linear map of the concatenated embeddings), one map for each subset of two or more; a single embedding is taken as it is.

    Every map starts as the mean of its embeddings. All maps are applied to all items and each item picks its own: no loop over
    items, no data-dependent shape. Subsets number 2^m, so m is at most 6.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.subsets = [s for size in range(2, count + 1) for s in itertools.combinations(range(count), size)]
        starts = [torch.eye(dim).repeat(len(subset), 1) / len(subset) for subset in self.subsets]
        self.weights = nn.ParameterList(nn.Parameter(start) for start in starts)

    def forward(self, items: Float[Tensor, "n m d"], shown: Bool[Tensor, "n m"]) -> Float[Tensor, "n d"]:
        """Fused vectors; `items` are zero where not shown, an item that shows nothing gets a zero vector."""
        fused = torch.where((shown.sum(dim=1) == 1).unsqueeze(1), items.sum(dim=1), 0.0)
        for subset, weight in zip(self.subsets, self.weights, strict=True):
            inside = torch.stack([shown[:, m] if m in subset else ~shown[:, m] for m in range(shown.shape[1])], dim=1).all(
                dim=1
            )
            mapped = torch.cat([items[:, m] for m in subset], dim=1) @ weight.to(items.dtype)
            fused = fused + torch.where(inside.unsqueeze(1), mapped, 0.0)
        return functional.normalize(fused, dim=1, eps=1e-12)


class MaskedFusion(nn.Module):
    """normalize(h + MLP(h)), h the mean over the visible modalities of A_m z_m + e_m: a small stand-in for a fusion transformer.

    Starts as the mean: A_m = I, e_m = 0, and the MLP's last layer 0.
    """

    def __init__(self, count: int, dim: int, seed: int) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.eye(dim).repeat(count, 1, 1))
        self.places = nn.Parameter(torch.zeros(count, dim))
        generator = torch.Generator().manual_seed(seed)
        bound = dim**-0.5
        self.inner = nn.Parameter((torch.rand(dim, dim, generator=generator) * 2 - 1) * bound)
        self.outer = nn.Parameter(torch.zeros(dim, dim))

    def mapped(self, items: Float[Tensor, "b k d"]) -> Float[Tensor, "b k d"]:
        """A_m z_m + e_m of every modality: computed once, used in every view."""
        return torch.einsum("bkd,kde->bke", items, self.maps.to(items.dtype)) + self.places.to(items.dtype)

    def forward(self, mapped: Float[Tensor, "b k d"], visible: Bool[Tensor, "b k"]) -> Float[Tensor, "b d"]:
        """Fused vectors of what is visible; items with nothing visible get some finite vector."""
        kept = mapped.masked_fill(~visible.unsqueeze(-1), 0.0)
        mean = kept.sum(dim=1) / visible.sum(dim=1, keepdim=True).clamp_min(1)
        return functional.normalize(
            mean + functional.gelu(mean @ self.inner.to(mean.dtype)) @ self.outer.to(mean.dtype), dim=1, eps=1e-12
        )
