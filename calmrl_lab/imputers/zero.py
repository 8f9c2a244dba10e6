"""Fill a missing modality with zeros, as many released implementations do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from calmrl_lab.data.patterns import Observations, Pattern
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers.base import Imputer


@imputers.register("zero")
@dataclass(eq=False)
class Zero(Imputer):
    """All zeros: a control, not advice. A zero vector has no direction, so cosine scores and anchors ignore it at best."""

    name: ClassVar[str] = "zero"

    def _fit(self, data: Observations) -> None:
        """There is nothing to learn."""

    def _fill(self, data: Observations, pattern: Pattern) -> dict[int, Tensor]:
        return {j: torch.zeros(len(pattern.rows), data.dims[j], device=data.device) for j in pattern.missing}

    def state(self) -> dict[str, np.ndarray]:
        return {"dims": np.array(self.dims or ())}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.dims = tuple(int(d) for d in state["dims"])
