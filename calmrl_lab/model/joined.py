"""Heads of several runs as one: embeddings side by side, each part with a weight in the cosine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from calmrl_lab.errors import CalmrlError
from calmrl_lab.model.projection import Heads


class JoinedHeads(nn.Module):
    """The cosine of joined embeddings is the mean of the parts' cosines, weighted by `weights` (positive, of any sum).

    Does what `Heads` does for whoever projects; it is made after training and not trained itself. Raises CalmrlError for parts of other
    modalities or features, and for weights that are not positive.
    """

    kind = "joined"

    def __init__(self, parts: Sequence[Heads], weights: Sequence[float]) -> None:
        super().__init__()
        if len(parts) < 2 or len(parts) != len(weights) or any(not weight > 0 for weight in weights):
            raise CalmrlError(
                f"joining needs at least two heads with a positive weight each, got {len(parts)} and {list(weights)}"
            )
        for part in parts[1:]:
            if part.dims != parts[0].dims:
                raise CalmrlError(f"heads over {part.dims} cannot be joined with heads over {parts[0].dims}")
        self.parts = nn.ModuleList(parts)
        total = float(sum(weights))
        self.register_buffer("weights", torch.tensor([weight / total for weight in weights], dtype=torch.float64))
        self.modalities, self.dims = parts[0].modalities, dict(parts[0].dims)
        self.dim = sum(part.dim for part in parts)
        self.inputs = list(self.dims.values())

    def project(self, index: int, features: Float[Tensor, "n d_m"]) -> Float[Tensor, "n d"]:
        """Unit-norm embeddings of modality `index`."""
        weights = self.get_buffer("weights").sqrt().tolist()
        return torch.cat([w * part.project(index, features) for w, part in zip(weights, self.heads(), strict=True)], dim=-1)

    def forward(self, features: list[Float[Tensor, "b d_m"]], mask: Bool[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        """Embeddings of a padded batch; entries under a False mask are zero."""
        embeddings = torch.stack([self.project(index, rows) for index, rows in enumerate(features)], dim=1)
        return embeddings.masked_fill(~mask.unsqueeze(-1), 0.0)

    def heads(self) -> list[Heads]:
        """The parts."""
        return [part for part in self.parts if isinstance(part, Heads)]


AnyHeads: TypeAlias = Heads | JoinedHeads
