"""Fill a missing modality with the mean of the nearest items' rows, nearest in what is observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._training_rows import TrainingRows
from calmrl_lab.imputers.base import whole


@imputers.register("knn")
@dataclass(eq=False)
class NearestNeighbours(TrainingRows):
    """Mean of the rows of the nearest training items that show the missing modality, exact search over the observed modalities.

    neighbours: how many items are averaged. Every observed modality counts the same, whatever its scale and dimension.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import NearestNeighbours
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = NearestNeighbours().fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "knn"

    neighbours: int = 10

    def __post_init__(self) -> None:
        self.neighbours = whole(self.neighbours, "neighbours", 1)

    def _learn(self, sources: Float[Tensor, "n a"], targets: Float[Tensor, "n b"]) -> Any:
        return _index(sources), min(self.neighbours, len(sources)), targets

    def _apply(self, model: Any, sources: Float[Tensor, "n a"]) -> Float[Tensor, "n b"]:
        index, count, targets = model
        nearest = _nearest(index, sources, count)
        return targets[nearest].mean(dim=1)


def _index(rows: Float[Tensor, "n a"]) -> Any:
    """An exact index of `rows`: FAISS where it is installed, which takes float32 and millions of rows, else scikit-learn."""
    try:
        import faiss
    except ImportError:
        from sklearn.neighbors import NearestNeighbors

        return NearestNeighbors(algorithm="brute").fit(rows.numpy())
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(np.ascontiguousarray(rows.float().numpy()))
    return index


def _nearest(index: Any, rows: Float[Tensor, "n a"], count: int) -> Int[Tensor, "n c"]:
    """Positions of the `count` nearest indexed rows of each of `rows`, nearest first."""
    if len(rows) == 0:
        return torch.zeros(0, count, dtype=torch.int64)
    if hasattr(index, "kneighbors"):
        return torch.from_numpy(index.kneighbors(rows.numpy(), count, return_distance=False))
    return torch.from_numpy(index.search(np.ascontiguousarray(rows.float().numpy()), count)[1])
