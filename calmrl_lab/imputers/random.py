"""Fill a missing modality with a random real row of it: the control of Figure 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from calmrl_lab.data.patterns import Observations, Pattern
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers.base import Imputer, indexed, whole


@imputers.register("random")
@dataclass(eq=False)
class RandomRow(Imputer):
    """A row of the training data drawn at random: plausible for the modality, unrelated to the item.

    seed: every call draws afresh from this seed, so the same call gives the same rows.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import RandomRow
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = RandomRow().fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "random"

    seed: int = 0

    rows: list[Tensor] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        self.seed = whole(self.seed, "seed", 0)

    def _fit(self, data: Observations) -> None:
        self.rows = [value[data.mask[:, j]].cpu() for j, value in enumerate(data.values)]

    def _fill(self, data: Observations, pattern: Pattern) -> dict[int, Tensor]:
        filled = {}
        for j in pattern.missing:
            # One draw for every item of the call, so that an item's row does not depend on the patterns of the others.
            generator = np.random.default_rng([self.seed, j])
            drawn = torch.from_numpy(generator.integers(len(self.rows[j]), size=len(data)))
            filled[j] = self.rows[j][drawn[pattern.rows.cpu()]].to(data.device)
        return filled

    def state(self) -> dict[str, np.ndarray]:
        return {"seed": np.array([self.seed])} | {f"rows.{j}": rows.numpy() for j, rows in enumerate(self.rows)}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.seed = int(np.asarray(state["seed"])[0])
        self.rows = [torch.from_numpy(np.array(rows)) for rows in indexed(state, "rows")]
        self.dims = tuple(rows.shape[1] for rows in self.rows)
