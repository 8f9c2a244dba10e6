"""Fill a missing modality with its mean over the items that show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from calmrl_lab.data.patterns import Array, Observations, Pattern
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers.base import Imputer, indexed


@imputers.register("mean")
@dataclass(eq=False)
class Mean(Imputer):
    """The mean of the observed rows of a modality: the same for every item, and the baseline for every other imputer.

    `predicted_error` is the variance of the modality (sum over coordinates).

    >>> import numpy as np
    >>> from calmrl_lab.imputers import Mean
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = Mean().fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "mean"

    means: list[np.ndarray] = field(init=False, repr=False, default_factory=list)
    variances: np.ndarray = field(init=False, repr=False, default_factory=lambda: np.zeros(0))

    def _fit(self, data: Observations) -> None:
        shown = [value[data.mask[:, j]].double() for j, value in enumerate(data.values)]
        self.means = [rows.mean(dim=0).cpu().numpy() for rows in shown]
        self.variances = np.array([float(rows.var(dim=0, correction=0).sum()) for rows in shown])

    def _fill(self, data: Observations, pattern: Pattern) -> dict[int, Tensor]:
        means = {j: torch.from_numpy(self.means[j]).to(data.values[j]) for j in pattern.missing}
        return {j: mean.expand(len(pattern.rows), -1) for j, mean in means.items()}

    def predicted_error(self, embeddings: Sequence[Array], mask: Array) -> Array:
        """Expected ||z - zhat||^2 of every filled entry [N, k] (float64); 0 where observed."""
        data = self._observe_fitted(embeddings, mask)
        return data.returned(torch.from_numpy(self.variances).to(data.device) * ~data.mask)

    def state(self) -> dict[str, np.ndarray]:
        return {"variances": self.variances} | {f"means.{j}": mean for j, mean in enumerate(self.means)}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.means, self.variances = indexed(state, "means"), np.asarray(state["variances"])
        self.dims = tuple(len(mean) for mean in self.means)
