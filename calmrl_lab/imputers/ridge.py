"""Ridge regression of every missing modality on the observed ones, a regression a pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._regression import ridge
from calmrl_lab.imputers._training_rows import TrainingRows


@imputers.register("ridge")
@dataclass(eq=False)
class Ridge(TrainingRows):
    """Ridge regression from the observed modalities, fitted on the items that show them and the missing one.

    The strength is chosen for every pattern by generalised cross-validation. Strong where such items are many; has nothing to
    say about modalities never seen together, which get the mean.
    """

    name: ClassVar[str] = "ridge"

    def _learn(self, sources: Float[Tensor, "n a"], targets: Float[Tensor, "n b"]) -> tuple[Tensor, Tensor, Tensor]:
        # The rows of a pattern have their own means.
        middle, centre = sources.mean(dim=0), targets.mean(dim=0)
        coefficients, _ = ridge(sources - middle, targets - centre)
        return middle, centre, coefficients

    def _apply(self, model: tuple[Tensor, Tensor, Tensor], sources: Float[Tensor, "n a"]) -> Float[Tensor, "n b"]:
        middle, centre, coefficients = model
        return centre + (sources - middle) @ coefficients
