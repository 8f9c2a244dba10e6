"""Low-rank completion of the matrix of all modalities by soft-thresholded singular values (Mazumder, Hastie and Tibshirani
2010)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.data.patterns import Observations, Pattern
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._blocks import Blocks
from calmrl_lab.imputers.base import Imputer, whole

_THRESHOLDS = (0.6, 0.4, 0.25, 0.15, 0.08)


@imputers.register("soft-impute")
@dataclass(eq=False)
class SoftImpute(Imputer):
    """Nuclear-norm matrix completion; new items get their factor by ridge regression on the columns they show.

    The threshold, relative to the largest singular value, is one of five: the one that best completes a tenth of the observed
    blocks, hidden for this purpose.

    rank: most singular values kept. rounds: of filling and thresholding, for every threshold. seed: of the hidden tenth.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import SoftImpute
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = SoftImpute().fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "soft-impute"

    rank: int = 64
    rounds: int = 20
    seed: int = 0

    blocks: Blocks = field(init=False, repr=False, default_factory=Blocks)
    # Columns of the completed matrix: V sqrt(singular value) [D, r]; and the threshold in its units.
    factor: Tensor = field(init=False, repr=False, default_factory=lambda: torch.zeros(0, 0))
    threshold: float = field(init=False, repr=False, default=0.0)

    def __post_init__(self) -> None:
        self.rank, self.rounds = whole(self.rank, "rank", 1), whole(self.rounds, "rounds", 1)
        self.seed = whole(self.seed, "seed", 0)

    def _fit(self, data: Observations) -> None:
        self.blocks = Blocks.of(data)
        values, seen = self.blocks.scaled(data)
        usable = seen.any(dim=1)
        values, seen = values[usable], seen[usable]
        hidden = torch.from_numpy(np.random.default_rng(self.seed).random(seen.shape) < 0.1) & seen
        # Something of every item stays.
        hidden[(seen & ~hidden).sum(dim=1) == 0] = False
        train = seen & ~hidden
        checked = self.blocks.expand(hidden)
        best, best_error = _THRESHOLDS[0], float("inf")
        for share in _THRESHOLDS:
            completed, _, _ = self._complete(values, train, share)
            error = float((completed - values)[checked].square().sum()) if bool(hidden.any()) else 0.0
            if error >= best_error:
                break
            best, best_error = share, error
        _, self.factor, self.threshold = self._complete(values, seen, best)

    def _complete(self, values: Float[Tensor, "n d"], seen: Bool[Tensor, "n k"], share: float) -> tuple[Tensor, Tensor, float]:
        shown = self.blocks.expand(seen)
        filled = torch.where(shown, values, 0.0)
        top = float(torch.linalg.matrix_norm(filled, 2))
        threshold = share * top
        factor = values.new_zeros(values.shape[1], 1)
        for _ in range(self.rounds):
            u, singular, v = self._svd(filled)
            shrunk = (singular - threshold).clamp(min=0)
            low_rank = (u * shrunk) @ v
            factor = v.T * shrunk.sqrt()
            moved = float((low_rank - filled)[~shown].square().sum())
            filled = torch.where(shown, values, low_rank)
            if moved < 1e-8 * float(filled.square().sum()):
                break
        return filled, factor, threshold

    def _svd(self, matrix: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor, Tensor]:
        # Through the smaller Gram matrix: singular values below the threshold, where this is inaccurate, are dropped anyway.
        tall = matrix.shape[0] >= matrix.shape[1]
        gram = matrix.T @ matrix if tall else matrix @ matrix.T
        values, vectors = torch.linalg.eigh(gram)
        singular = values.flip(0)[: self.rank].clamp(min=0).sqrt()
        vectors = vectors.flip(1)[:, : self.rank]
        other = (matrix @ vectors if tall else matrix.T @ vectors) / singular.clamp(min=1e-150)
        return (other, singular, vectors.T) if tall else (vectors, singular, other.T)

    def _fill(self, data: Observations, pattern: Pattern) -> dict[int, Tensor]:
        values, seen = self.blocks.scaled(data.take(pattern.rows))
        shown = self.blocks.expand(seen[:1])[0]
        basis = self.factor[shown]
        inner = basis.T @ basis + max(self.threshold, 1e-12) * torch.eye(self.factor.shape[1], dtype=torch.float64)
        completed = values[:, shown] @ basis @ torch.linalg.inv(inner) @ self.factor.T
        return {j: self.blocks.restored(completed, j).to(data.device) for j in pattern.missing}

    def state(self) -> dict[str, np.ndarray]:
        options = np.array([self.rank, self.rounds, self.seed])
        return {
            **self.blocks.state(),
            "factor": self.factor.numpy(),
            "threshold": np.array([self.threshold]),
            "options": options,
        }

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.rank, self.rounds, self.seed = (int(value) for value in state["options"])
        self.blocks = Blocks.from_state(state)
        self.factor = torch.from_numpy(np.array(state["factor"]))
        self.threshold = float(np.asarray(state["threshold"])[0])
        self.dims = self.blocks.dims
