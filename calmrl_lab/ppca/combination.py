"""Predictions of one missing modality added up, each with a gain of its own that held-out items choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls
from torch import Tensor

# Eigenvalues below this share of the largest are rounding: two predictions may be nearly the same.
_RANK = 1e-12


@dataclass(frozen=True)
class AffineMap:
    """x -> (x left) right + offset, deviations of a missing modality from its reference; x are those of the observed modalities side by side.

    `left` [D, q], `right` [q, d_m] and `offset` [d_m] are float64.
    """

    left: Float[Tensor, "d_o q"]
    right: Float[Tensor, "q d_m"]
    offset: Float[Tensor, " d_m"]

    def __call__(self, deviations: Float[Tensor, "n d_o"]) -> Float[Tensor, "n d_m"]:
        """Predicted deviations from the reference."""
        return (deviations @ self.left) @ self.right + self.offset


@dataclass(frozen=True)
class CombinedAgreement:
    """Sums over items, with x = truth - reference and p_i the deviations that c predictions say: of 1, x'x, x'p_i [c] and p_i'p_j [c, c]."""

    count: float
    energy: float
    cross: Float[np.ndarray, " c"]
    power: Float[np.ndarray, "c c"]

    def __add__(self, other: CombinedAgreement) -> CombinedAgreement:
        return CombinedAgreement(
            self.count + other.count, self.energy + other.energy, self.cross + other.cross, self.power + other.power
        )

    def error(self, gains: Sequence[float] | Float[np.ndarray, " c"]) -> float:
        """Sum of squared errors when the deviations, each times its gain, are added to the reference."""
        along = np.asarray(gains, dtype=np.float64)
        return max(float(self.energy - 2 * along @ self.cross + along @ self.power @ along), 0.0)

    def best_gains(self, largest: float) -> Float[np.ndarray, " c"]:
        """The gains of least error among those that are not negative (Lawson and Hanson 1974), none of them above `largest`.

        >>> CombinedAgreement(10, 100.0, np.array([40.0, 0.0]), np.array([[40.0, 0.0], [0.0, 5.0]])).best_gains(2.0)
        array([1., 0.])
        """
        values, vectors = np.linalg.eigh((self.power + self.power.T) / 2)
        kept = values > _RANK * max(float(values[-1]), 1e-300)
        if not kept.any():
            return np.zeros(len(values))
        roots = np.sqrt(values[kept])
        along = vectors[:, kept]
        found: np.ndarray = nnls((along * roots).T, along.T @ self.cross / roots)[0]
        return found.clip(0.0, largest)


def sum_of(parts: Sequence[CombinedAgreement]) -> CombinedAgreement:
    """The sums over the items of all `parts`, at least one."""
    first, *others = parts
    return sum(others, first)


def improved_gains(
    folds: Sequence[CombinedAgreement], before: Sequence[float], least: float, confidence: float, largest: float
) -> tuple[Float[np.ndarray, " c"], float] | None:
    """The gains that held-out items support in place of `before`, and the squared error per item that goes with them; None where they do not.

    Each fold is scored at the gains that are best on the others. The mean improvement has to exceed `confidence` of its standard errors over
    folds, and the share `least` of the error before.
    """
    used = [fold for fold in folds if fold.count > 0]
    total = sum_of(used) if used else None
    if total is None or len(used) < 2 or total.energy <= 0:
        return None
    improvements = []
    for index, fold in enumerate(used):
        gains = sum_of([other for place, other in enumerate(used) if place != index]).best_gains(largest)
        improvements.append((fold.error(before) - fold.error(gains)) / fold.count)
    spread = float(np.std(improvements, ddof=1)) / len(improvements) ** 0.5
    if not np.mean(improvements) > max(confidence * spread, least * total.error(before) / total.count):
        return None
    gains = total.best_gains(largest)
    return gains, total.error(gains) / total.count


def work_of_eigenvectors(rows: float, columns: float) -> float:
    """About how many multiplications the eigenvectors of the second moment of `rows` rows with `columns` coordinates take, in units of those of a
    matrix product: the smaller of the two moment matrices is decomposed."""
    small = min(rows, columns)
    return 20 * small**3 + rows * columns * small
