"""What floating-point numbers cannot hold: squares beyond the range of float32, and differences that are rounding only."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.errors import CalmrlError

# Squares of numbers between 2**-40 and 2**40, and sums of millions of them, are far inside the range of float32.
_EXPONENT = 40


def range_scale(largest: float) -> float:
    """1 if numbers of magnitude `largest` can be squared and summed in float32, else the power of two next to `largest`.

    >>> range_scale(3.0), range_scale(0.0), range_scale(2.0**100)
    (1.0, 1.0, 1.2676506002282294e+30)
    """
    if largest == 0 or not math.isfinite(largest):
        return 1.0
    exponent = math.frexp(largest)[1] - 1
    return 1.0 if abs(exponent) <= _EXPONENT else math.ldexp(1.0, exponent)


def to_float32(features: Float[np.ndarray, "... d"], modality: str) -> Float[np.ndarray, "... d"]:
    """Features of a modality, of any floating-point dtype, as float32.

    Raises CalmrlError for float64 features that are beyond the largest float32, or all of which float32 would take for zero: the cast alone would
    make infinity or equal items of them.

    >>> to_float32(np.array([[1.0, 2.0]]), "vision").dtype
    dtype('float32')
    """
    if features.dtype.itemsize > 4 and features.size:
        finite = np.abs(features[np.isfinite(features)])
        largest = float(finite.max(initial=0.0))
        with np.errstate(over="ignore"):
            overflows = bool(np.isinf(np.float32(largest)))
        if overflows or 0 < largest < float(np.finfo(np.float32).tiny):
            raise CalmrlError(
                f"the largest feature of modality '{modality}' is {largest:.1e} in magnitude, which float32, in which runs compute, cannot hold",
                hint="scale the features of this modality before they are stored",
            )
    return np.asarray(features, dtype=np.float32)


def unit_rows(rows: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """`rows` at norm one, also those whose squares overflow or underflow; rows of zeros stay zero.

    >>> unit_rows(torch.tensor([[3e30, 4e30], [0.0, 0.0], [3e-40, 4e-40]])).tolist()[1]
    [0.0, 0.0]
    """
    largest = rows.abs().amax(dim=-1, keepdim=True)
    extreme = (largest > 0) & ((largest > 2.0**_EXPONENT) | (largest < 2.0**-_EXPONENT))
    rows = torch.where(extreme, rows / torch.where(largest > 0, largest, 1.0), rows)
    return torch.nn.functional.normalize(rows, dim=-1)


def centred(rows: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "n d"]]:
    """The mean of `rows` and their deviations from it, exactly 0 in coordinates that are the same in all rows.

    The mean of equal numbers is another number by rounding. A scale made of that difference would blow up any other value that comes later.

    >>> centre, deviations = centred(torch.full((3, 1), 0.1, dtype=torch.float64))
    >>> deviations.tolist()
    [[0.0], [0.0], [0.0]]
    """
    centre = rows.mean(dim=0)
    return centre, (rows - centre).masked_fill(constant(rows), 0.0)


def constant(rows: Float[Tensor, "n d"]) -> Bool[Tensor, " d"]:
    """Whether a coordinate is exactly the same in all `rows`.

    >>> constant(torch.tensor([[1.0, 2.0], [1.0, 3.0]])).tolist()
    [True, False]
    """
    return (rows == rows[:1]).all(dim=0)
