"""Fill a missing modality with its mean over the items of the same cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from calmrl_lab.data.patterns import Observations, Pattern
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._blocks import Blocks
from calmrl_lab.imputers.base import Imputer, whole


@imputers.register("group-mean")
@dataclass(eq=False)
class GroupMean(Imputer):
    """The mean of the item's cluster: k-means over all modalities, an item belonging to the cluster nearest in what it shows.

    Clusters are found by Lloyd's algorithm on the observed entries only (k-means with missing values): distances are means over
    observed modalities, and centres are means of observed rows.

    clusters: how many (at most one for every eight items). rounds: of Lloyd's algorithm. seed: of the starting items.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import GroupMean
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = GroupMean().fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "group-mean"

    clusters: int = 16
    rounds: int = 20
    seed: int = 0

    blocks: Blocks = field(init=False, repr=False, default_factory=Blocks)
    centres: Tensor = field(init=False, repr=False, default_factory=lambda: torch.zeros(0, 0))

    def __post_init__(self) -> None:
        self.clusters, self.rounds = whole(self.clusters, "clusters", 1), whole(self.rounds, "rounds", 1)
        self.seed = whole(self.seed, "seed", 0)

    def _fit(self, data: Observations) -> None:
        self.blocks = Blocks.of(data)
        values, seen = self.blocks.scaled(data)
        usable = seen.any(dim=1)
        values, seen = values[usable], seen[usable]
        count = max(1, min(self.clusters, len(values) // 8))
        # Items that show more make better starting centres; the rest is chance.
        order = torch.from_numpy(np.random.default_rng(self.seed).permutation(len(values)))
        shown = self.blocks.expand(seen)
        first = order[torch.argsort(seen[order].sum(dim=1), descending=True, stable=True)][:count]
        self.centres = values[first]
        for _ in range(self.rounds):
            cluster = self._nearest(values, seen)
            belongs = torch.nn.functional.one_hot(cluster, count).to(values)
            weight = belongs.T @ shown.to(values)
            # A modality that no item of the cluster shows gets the overall mean, zero.
            centres = torch.where(weight > 0, belongs.T @ values / weight.clamp(min=1), 0.0)
            if torch.equal(centres, self.centres):
                break
            self.centres = centres

    def _nearest(self, values: Tensor, seen: Tensor) -> Tensor:
        shown = self.blocks.expand(seen).to(values)
        distance = shown @ self.centres.square().T - 2 * values @ self.centres.T
        return distance.argmin(dim=1)

    def _fill(self, data: Observations, pattern: Pattern) -> dict[int, Tensor]:
        values, seen = self.blocks.scaled(data.take(pattern.rows))
        if not pattern.observed:
            return {j: self.blocks.restored(torch.zeros_like(values), j).to(data.device) for j in pattern.missing}
        centres = self.centres[self._nearest(values, seen)]
        return {j: self.blocks.restored(centres, j).to(data.device) for j in pattern.missing}

    def state(self) -> dict[str, np.ndarray]:
        options = np.array([self.clusters, self.rounds, self.seed])
        return {**self.blocks.state(), "centres": self.centres.numpy(), "options": options}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.clusters, self.rounds, self.seed = (int(value) for value in state["options"])
        self.blocks = Blocks.from_state(state)
        self.centres = torch.from_numpy(np.array(state["centres"]))
        self.dims = self.blocks.dims
