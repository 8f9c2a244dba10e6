"""Canonical correlation: only the directions in which observed and missing modalities correlate most carry over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._training_rows import TrainingRows
from calmrl_lab.imputers.base import number, whole
from calmrl_lab.linalg.floating_range import centred


@imputers.register("cca")
@dataclass(eq=False)
class CCA(TrainingRows):
    """Regularised canonical correlation between the observed modalities and the missing one, a fit per pattern.

    The missing modality is predicted from the leading canonical variates, each shrunk by its correlation (the best linear
    prediction of that rank in canonical coordinates).

    components: canonical variates kept.
    shrinkage: share of the mean variance that is added to every direction before whitening.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import CCA
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = CCA().fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "cca"

    components: int = 32
    shrinkage: float = 1.0

    def __post_init__(self) -> None:
        self.components = whole(self.components, "components", 1)
        self.shrinkage = number(self.shrinkage, "shrinkage")

    def _learn(self, sources: Float[Tensor, "n a"], targets: Float[Tensor, "n b"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (middle, x), (centre, y) = centred(sources), centred(targets)
        left, right = _whitening(x, self.shrinkage), _whitening(y, self.shrinkage)
        u, correlation, v = torch.linalg.svd((x @ left.whiten).T @ (y @ right.whiten) / len(x), full_matrices=False)
        kept = slice(0, self.components)
        into = left.whiten @ u[:, kept] * correlation[kept]
        return middle, centre, into, v[kept] @ right.restore

    def _apply(self, model: tuple[Tensor, Tensor, Tensor, Tensor], sources: Float[Tensor, "n a"]) -> Float[Tensor, "n b"]:
        middle, centre, into, out = model
        return centre + (sources - middle) @ into @ out


@dataclass(frozen=True)
class _Whitening:
    whiten: Float[Tensor, "d r"]
    restore: Float[Tensor, "r d"]


def _whitening(values: Float[Tensor, "n d"], shrinkage: float) -> _Whitening:
    """Maps to and from coordinates of (nearly) unit covariance, within the span of the rows."""
    _, singular, directions = torch.linalg.svd(values, full_matrices=False)
    alive = singular > 1e-10 * singular.max().clamp(min=1e-300)
    singular, directions = singular[alive], directions[alive]
    variance = singular.square() / len(values)
    scale = (variance + shrinkage * variance.mean()).sqrt() if len(variance) else variance
    return _Whitening(directions.T / scale, scale.unsqueeze(1) * directions)
