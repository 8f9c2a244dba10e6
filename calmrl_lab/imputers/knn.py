"""Fill a missing modality with the mean of the nearest items' rows, nearest in what is observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._training_rows import TrainingRows


@imputers.register("knn")
@dataclass(eq=False)
class NearestNeighbours(TrainingRows):
    """Mean of the rows of the nearest training items that show the missing modality, exact search over the observed modalities.

    neighbours: how many items are averaged. Every observed modality counts the same, whatever its scale and dimension.
    """

    name: ClassVar[str] = "knn"

    neighbours: int = 10

    def _learn(self, sources: Float[Tensor, "n a"], targets: Float[Tensor, "n b"]) -> Any:
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=min(self.neighbours, len(sources)), algorithm="brute")
        return search.fit(sources.numpy()), targets

    def _apply(self, model: Any, sources: Float[Tensor, "n a"]) -> Float[Tensor, "n b"]:
        search, targets = model
        nearest = search.kneighbors(sources.numpy(), return_distance=False)
        return targets[torch.from_numpy(nearest)].mean(dim=1)
