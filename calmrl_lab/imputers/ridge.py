"""Ridge regression of every missing modality on the observed ones, a regression per pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._training_rows import TrainingRows
from calmrl_lab.linalg.floating_range import centred

# Penalties that are tried, as multiples of the mean eigenvalue of the Gram matrix.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)


@imputers.register("ridge")
@dataclass(eq=False)
class Ridge(TrainingRows):
    """Ridge regression from the observed modalities, fitted on the items that show them and the missing one.

    scikit-learn's, its strength chosen for every pattern by the error of leaving each item out. Strong where such items are many;
    has nothing to say about modalities never seen together, which get the mean.

    >>> import numpy as np
    >>> from calmrl_lab.imputers import Ridge
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 40, 4))
    >>> mask = np.ones((40, 2), dtype=bool)
    >>> mask[:5, 1] = False  # the first five items have no text
    >>> filled = Ridge().fit([vision, text], mask).impute([vision, text], mask)
    >>> filled[1].shape, bool(np.isfinite(filled[1]).all())
    ((40, 4), True)
    """

    name: ClassVar[str] = "ridge"

    def _learn(self, sources: Float[Tensor, "n a"], targets: Float[Tensor, "n b"]) -> tuple[Tensor, Tensor, Tensor]:
        from sklearn.linear_model import RidgeCV

        # The rows of a pattern have their own means.
        (middle, x), (centre, y) = centred(sources), centred(targets)
        unit = mean_eigenvalue(x)
        coefficients = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64)
        if unit > 0:
            fitted = RidgeCV([strength * unit for strength in _STRENGTHS]).fit(x.numpy(), y.numpy())
            coefficients += torch.from_numpy(fitted.coef_).reshape(y.shape[1], x.shape[1]).T
        return middle, centre, coefficients

    def _apply(self, model: tuple[Tensor, Tensor, Tensor], sources: Float[Tensor, "n a"]) -> Float[Tensor, "n b"]:
        middle, centre, coefficients = model
        return centre + (sources - middle) @ coefficients


def mean_eigenvalue(rows: Float[Tensor, "n a"]) -> float:
    """Mean of the eigenvalues of rows' rows that can differ from 0: the unit of a ridge penalty. 0 without rows or columns."""
    return float(rows.square().sum()) / max(min(rows.shape), 1)
