"""Ridge regression of every modality on all others, in turn, until filled values and regressions agree (chained equations)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._blocks import Blocks
from calmrl_lab.imputers._regression import ridge
from calmrl_lab.imputers.base import Imputer, indexed
from calmrl_lab.imputers.observations import Observations, Pattern


@imputers.register("iterative-ridge")
@dataclass(eq=False)
class IterativeRidge(Imputer):
    """Chained equations by modality: gaps start at the mean, and every round predicts each modality from all others as filled
    so far.

    New items go through the same rounds. The strength of each regression is chosen by generalised cross-validation, which
    treats filled values as if they had been observed.

    rounds: passes over the modalities.
    """

    name: ClassVar[str] = "iterative-ridge"

    rounds: int = 3
    strength: float = 1.0

    blocks: Blocks = field(init=False, repr=False, default_factory=Blocks)
    # One [D - d_m, d_m] matrix a modality and round, in the order in which they are applied.
    coefficients: list[Tensor] = field(init=False, repr=False, default_factory=list)

    def _fit(self, data: Observations) -> None:
        self.blocks = Blocks.of(data)
        values, seen = self.blocks.scaled(data)
        usable = seen.any(dim=1)
        values, seen = values[usable], seen[usable]
        self.coefficients = []
        for _ in range(self.rounds):
            for m in range(seen.shape[1]):
                place = self.blocks.columns(m)
                others = torch.cat([values[:, : place.start], values[:, place.stop :]], dim=1)
                known = seen[:, m]
                fitted, _ = ridge(others[known], values[known, place], self.strength)
                self.coefficients.append(fitted)
                values[~known, place] = others[~known] @ fitted

    def _chained(self, values: Float[Tensor, "n d"], seen: Bool[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        for turn, fitted in enumerate(self.coefficients):
            m = turn % seen.shape[1]
            place = self.blocks.columns(m)
            gap = ~seen[:, m]
            others = torch.cat([values[gap, : place.start], values[gap, place.stop :]], dim=1)
            values[gap, place] = others @ fitted
        return values

    def _fill(self, data: Observations, pattern: Pattern) -> dict[int, Tensor]:
        values, seen = self.blocks.scaled(data.take(pattern.rows))
        if pattern.observed:
            values = self._chained(values, seen)
        return {j: self.blocks.restored(values, j).to(data.device) for j in pattern.missing}

    def state(self) -> dict[str, np.ndarray]:
        fitted = {f"coefficients.{turn}": matrix.numpy() for turn, matrix in enumerate(self.coefficients)}
        return {**self.blocks.state(), **fitted, "options": np.array([self.rounds])}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        (self.rounds,) = (int(value) for value in state["options"])
        self.blocks = Blocks.from_state(state)
        self.coefficients = [torch.from_numpy(np.array(matrix)) for matrix in indexed(state, "coefficients")]
        self.dims = self.blocks.dims
