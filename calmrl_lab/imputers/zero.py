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
    """All zeros, as a control only: a zero vector has no direction, so cosines and anchors ignore it at best.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import Zero
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = Zero().fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "zero"

    def _fit(self, data: Observations) -> None:
        """There is nothing to learn."""

    def _fill(self, data: Observations, pattern: Pattern) -> dict[int, Tensor]:
        return {j: torch.zeros(len(pattern.rows), data.dims[j], device=data.device) for j in pattern.missing}

    def state(self) -> dict[str, np.ndarray]:
        return {"dims": np.array(self.dims or ())}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.dims = tuple(int(d) for d in state["dims"])
