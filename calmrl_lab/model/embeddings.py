"""Items as embeddings: unit-norm vectors, one per modality that an item shows, with the names and groups of the items."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calmrl_lab.model.encode import stack


@dataclass(frozen=True)
class Embeddings:
    """N items of k modalities as vectors: unit-norm embeddings, or what another similarity than the cosine compares (`AlignmentModel.represent`).

    `items` [N, k, d] is the first row of every modality, zero where `mask` [N, k] is False; `rows[j]` [R_j, d] are all rows of
    modality j, that of item i where `owners[j]` is i. `labels` are those of the store, one string per item.
    """

    modalities: tuple[str, ...]
    ids: np.ndarray
    group: np.ndarray
    items: Float[Tensor, "n k d"]
    mask: Bool[Tensor, "n k"]
    rows: tuple[Float[Tensor, "r d"], ...]
    owners: tuple[Int[Tensor, " r"], ...]
    labels: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def filled(self, imputer: Any, mask: Bool[Tensor, "n k"]) -> Float[Tensor, "n k d"]:
        """`items` with the gaps of `mask` imputed; what the mask hides is not looked at."""
        return stack(imputer.impute(list(self.items.unbind(dim=1)), mask)).to(self.items.dtype)


def owners_of(offsets: Int[Tensor, " n_plus_1"]) -> Int[Tensor, " r"]:
    """The item of every row, where item i owns rows offsets[i] to offsets[i + 1]."""
    return torch.repeat_interleave(torch.arange(len(offsets) - 1, device=offsets.device), offsets.diff())
