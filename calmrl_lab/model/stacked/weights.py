"""Non-negative weights of a sum of similarities, by multinomial logistic regression on validation items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

# Items of a direction that decide; more make no difference to a handful of weights.
MOST_ITEMS = 500
# Weights are of scores with unit deviation; this keeps them finite where validation items are told apart without an error.
_RIDGE = 1e-3


def logistic_weights(scores: Sequence[Float[Tensor, "c n n"]]) -> Float[np.ndarray, " c"]:
    """Weights w >= 0 of c similarities that make the matching candidate most likely: the largest mean of log softmax(sum_c w_c s_c)_ii.

    `scores` holds one [c, n, n] per direction: similarity c of query i with candidate j, whose match is i; each direction counts once. The mean
    is concave in w, so there is one maximum, and a similarity that adds nothing to the others gets weight zero (stacking, Wolpert 1992; the
    logarithmic opinion pool of the similarities). A similarity that is constant gets weight zero.

    >>> good, noise = torch.eye(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    >>> weights = logistic_weights([torch.stack([good, noise])])
    >>> bool(weights[0] > 0), float(weights[1])
    (True, 0.0)
    """
    spread = torch.stack([part.double().std(dim=(1, 2), correction=0) for part in scores]).square().mean(dim=0).sqrt()
    scale = torch.where(spread > 1e-12, 1 / spread.clamp_min(1e-12), 0.0)
    scaled = [part.double() * scale[:, None, None] for part in scores]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = 0.0, torch.zeros(len(weights), dtype=torch.float64)
        tensor = torch.from_numpy(weights)
        for part in scaled:
            logits = torch.einsum("c,cij->ij", tensor, part)
            logs = torch.log_softmax(logits, dim=1)
            value -= float(logs.diagonal().mean())
            expected = (logs.exp() * part).sum(dim=2)
            gradient += (expected - part.diagonal(dim1=1, dim2=2)).mean(dim=1)
        count = len(scaled)
        return value / count + _RIDGE * float(weights @ weights), (gradient / count).numpy() + 2 * _RIDGE * weights

    start = np.full(len(scale), 1.0 / len(scale))
    found = minimize(loss, start, jac=True, bounds=[(0.0, None)] * len(start), method="L-BFGS-B")
    return np.asarray(found.x, dtype=np.float64) * scale.numpy()
