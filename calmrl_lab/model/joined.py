"""Projections of several models as one: embeddings side by side, each part with a weight in the cosine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calmrl_lab.errors import CalmrlError
from calmrl_lab.model.projection import Heads


class JoinedHeads(nn.Module):
    """The cosine of joined embeddings is the mean of the parts' cosines, weighted by `weights` (positive, of any sum).

    What it is given are the inputs of all parts side by side (`feature_map.SideBySide`); it is made after training and not trained itself.
    Raises CalmrlError for parts of other modalities, and for weights that are not positive.
    """

    kind = "joined"

    def __init__(self, parts: Sequence[Heads], weights: Sequence[float]) -> None:
        super().__init__()
        if len(parts) < 2 or len(parts) != len(weights) or any(not weight > 0 for weight in weights):
            raise CalmrlError(
                f"joining needs at least two heads with a positive weight each, got {len(parts)} and {list(weights)}"
            )
        for part in parts[1:]:
            if part.modalities != parts[0].modalities:
                raise CalmrlError(
                    f"heads of {', '.join(part.modalities)} cannot be joined with heads of {', '.join(parts[0].modalities)}"
                )
        self.parts = nn.ModuleList(parts)
        total = float(sum(weights))
        self.register_buffer("weights", torch.tensor([weight / total for weight in weights], dtype=torch.float64))
        self.modalities = parts[0].modalities
        self.inputs = [sum(widths) for widths in zip(*(part.inputs for part in parts), strict=True)]
        self.dim = sum(part.dim for part in parts)

    def project(self, index: int, features: Float[Tensor, "n i"]) -> Float[Tensor, "n d"]:
        """Unit-norm embeddings of modality `index`."""
        weights, parts = self.get_buffer("weights").sqrt().tolist(), self.heads()
        inputs = features.split([part.inputs[index] for part in parts], dim=-1)
        return torch.cat([w * part.project(index, x) for w, part, x in zip(weights, parts, inputs, strict=True)], dim=-1)

    def heads(self) -> list[Heads]:
        """The parts."""
        return [part for part in self.parts if isinstance(part, Heads)]
