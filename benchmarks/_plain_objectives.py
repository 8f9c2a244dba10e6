"""Loss formulations as the formulas are written, without a thought for cost: what the kernels are measured against.

These follow the equations the way released code does: an SVD with the full d x d basis, one determinant for each pair of items, the
differences of all pairs as one array, a loader that fetches item by item.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

TAU_ALIGNMENT, TAU_UNIFORMITY = 0.5, 0.1


def spectral_loss(embeddings: Tensor, full: bool) -> Tensor:
    """Alignment and uniformity of [B, k, d] through torch.linalg.svd of [B, d, k]; anchors point with their modalities."""
    u, sigma, _ = torch.linalg.svd(embeddings.mT, full_matrices=full)
    anchor = u[:, :, 0]
    sign = torch.where((anchor * embeddings.sum(dim=1)).sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    anchor = anchor * sign
    first = torch.zeros(len(sigma), dtype=torch.long, device=sigma.device)
    own = torch.arange(len(sigma), device=sigma.device)
    alignment = functional.cross_entropy(sigma / TAU_ALIGNMENT, first)
    return alignment + functional.cross_entropy(anchor @ anchor.mT / TAU_UNIFORMITY, own)


def volumes(queries: Tensor, items: Tensor) -> Tensor:
    """sqrt |det G_ij| of the Gram matrices [B, B, k, k] of query i with the embeddings of item j."""
    count, others = len(queries), items.shape[1]
    own = queries.square().sum(dim=1)[:, None].expand(count, count)
    cross = [queries @ items[:, m].mT for m in range(others)]
    inner = items @ items.mT
    rows = [torch.stack([own, *cross], dim=-1)]
    rows += [torch.stack([cross[m], *(inner[:, m, n].expand(count, -1) for n in range(others))], dim=-1) for m in range(others)]
    return torch.linalg.det(torch.stack(rows, dim=-2)).abs().sqrt()


def squared_parallelograms(queries: Tensor, items: Tensor) -> Tensor:
    """|u|^2 |w|^2 - <u, w>^2 from the differences [B, B, d] of all queries and both corners."""
    first = queries[:, None] - items[None, :, 0]
    second = queries[:, None] - items[None, :, 1]
    lengths = first.square().sum(dim=-1) * second.square().sum(dim=-1)
    return lengths - (first * second).sum(dim=-1).square()


class Items(Dataset):
    """k feature rows per item, fetched one item at a time."""

    def __init__(self, features: list[Tensor]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features[0])

    def __getitem__(self, index: int) -> list[Tensor]:
        return [rows[index] for rows in self.features]


def loader(features: list[Tensor], batch: int) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(Items(features), batch_size=batch, shuffle=True, generator=generator, drop_last=True)
