"""Mapped features of a table to embeddings, one tensor per modality."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.model.projection import Projection


@torch.no_grad()
def encode(projection: Projection, table: FeatureTable) -> list[Float[Tensor, "n d"]]:
    """Embeddings of every item's first row of each modality: k of [N, d]; rows an item does not own are zero.

    The rows of `table` are what the projection takes: features after their feature maps.
    """
    owned = table.natural_mask()
    embedded = (projection.project(index, rows) for index, rows in enumerate(table.first_rows()))
    return [rows.masked_fill(~owned[:, index].unsqueeze(1), 0.0) for index, rows in enumerate(embedded)]


def stack(embeddings: Sequence[Tensor]) -> Float[Tensor, "n k d"]:
    """The list form of imputers as the tensor form of objectives and anchors."""
    return torch.stack(list(embeddings), dim=1)
