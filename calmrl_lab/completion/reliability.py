"""Reliability of predicted imputation errors: held-out entries in bins of predicted error, with the real error of each bin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from calmrl_lab.errors import CalmrlError


@dataclass(frozen=True)
class Reliability:
    """A row per bin of entries, from the smallest prediction to the largest: how many, mean predicted and mean real squared
    error, and the standard error of the latter."""

    count: Float[np.ndarray, " b"]
    predicted: Float[np.ndarray, " b"]
    real: Float[np.ndarray, " b"]
    standard_error: Float[np.ndarray, " b"]

    @property
    def ratio(self) -> float:
        """Mean real over mean predicted error: above 1, the imputer is over-confident."""
        return float(np.average(self.real, weights=self.count) / np.average(self.predicted, weights=self.count))

    @property
    def miscalibration(self) -> float:
        """Mean distance between predicted and real error over entries, relative to the mean real error."""
        gap = np.average(np.abs(self.real - self.predicted), weights=self.count)
        return float(gap / np.average(self.real, weights=self.count))


def reliability(predicted: Float[np.ndarray, " n"], real: Float[np.ndarray, " n"], bins: int = 10) -> Reliability:
    """Reliability of predicted squared errors against the `real` ones of the same entries, in up to `bins` bins of equal
    counts.

    Entries of equal prediction share a bin, so an imputer that predicts by pattern gets one bin a pattern at most. Entries
    whose prediction is NaN are left out. Raises CalmrlError if the two differ in shape or nothing is left.
    """
    predicted, real = np.asarray(predicted, dtype=np.float64), np.asarray(real, dtype=np.float64)
    if predicted.shape != real.shape or predicted.ndim != 1:
        raise CalmrlError(f"predicted {list(predicted.shape)} and real errors {list(real.shape)} do not fit: expected [n] each")
    known = ~np.isnan(predicted) & ~np.isnan(real)
    if not known.any():
        raise CalmrlError("no entry has both a predicted and a real error")
    predicted, real = predicted[known], real[known]
    _, inverse, counts = np.unique(predicted, return_inverse=True, return_counts=True)
    # The bin of a value is where the middle of its entries falls.
    middle = (np.cumsum(counts) - counts / 2) / len(predicted)
    bin_of = np.minimum((middle * bins).astype(np.int64), bins - 1)[inverse]
    rows = [np.flatnonzero(bin_of == b) for b in np.unique(bin_of)]
    deviation = [real[r].std(ddof=1) / len(r) ** 0.5 if len(r) > 1 else np.nan for r in rows]
    means = [(predicted[r].mean(), real[r].mean()) for r in rows]
    return Reliability(
        np.array([len(r) for r in rows], dtype=np.float64),
        np.array([p for p, _ in means]),
        np.array([e for _, e in means]),
        np.array(deviation),
    )
