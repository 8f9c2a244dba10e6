"""The noise scale: a factor on the noise variances of a generative imputer, chosen on held-out items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.data.patterns import Patterns

# From the fitted noise to nearly the mean; each step doubles it.
SCALES = tuple(2.0**power for power in range(13))


# Least noise of a start for embeddings that have moved, as a share of each modality's variance.
_LEAST_NOISE = 0.1


def floor_noise(imputer: Any) -> Any:
    """`imputer` as a start for EM on embeddings that have moved since it was fitted: no modality's noise below a tenth of its variance.

    A modality of few features has no noise at all in its embedding, and what EM starts without noise it cannot correct: the modality dictates
    the latent vector by weights that were right for other embeddings. On the digits (a view of six features) imputations became ten times worse
    than the mean within forty refreshes. An imputer whose noise is larger everywhere, or that has none, is returned as it is.
    """
    noise = getattr(imputer, "noise", None)
    if noise is None:
        return imputer
    variance = np.array([(w**2).sum() / len(w) for w in imputer.weights]) + noise
    if (noise >= _LEAST_NOISE * variance).all():
        return imputer
    loose = type(imputer).from_state({**imputer.state(), "noise": np.maximum(noise, _LEAST_NOISE * variance)})
    loose.modalities = imputer.modalities
    return loose


def held_out_masks(
    training_mask: Bool[Tensor, "n k"], held_out: Bool[Tensor, "h k"]
) -> Iterator[tuple[Tensor, Bool[Tensor, "c k"]]]:
    """(positions of the complete held-out items, mask) for each incomplete pattern that training shows."""
    complete = torch.nonzero(held_out.all(dim=1)).squeeze(1)
    patterns = Patterns.of(training_mask).shown
    patterns = patterns[~patterns.all(dim=1) & patterns.any(dim=1)]
    if len(complete):
        for pattern in patterns:
            yield complete, pattern.expand(len(complete), -1)


def scale_noise(
    imputer: Any, embeddings: Sequence[Float[Tensor, "h d"]], held_out: Bool[Tensor, "h k"], training_mask: Bool[Tensor, "n k"]
) -> tuple[Any, float]:
    """`imputer` with its noise scaled so that it errs least on complete held-out items under the patterns of training; and the scale.

    Heads are trained on the very embeddings a generative model is fitted to: they look better aligned than those of new items, the
    fitted noise is too small, and the imputations overshoot (on openmoji they can be worse than the mean). A larger noise pulls every
    imputation towards the mean, in proportion to how little its pattern says. One number is chosen, on held-out items only, from `SCALES`; without
    complete held-out items, or for an imputer without noise variances, the imputer stays as it is (scale 1).
    """
    state = imputer.state()
    cases = list(held_out_masks(training_mask, held_out))
    if "noise" not in state or not cases:
        return imputer, 1.0
    best, chosen, scale = np.inf, imputer, 1.0
    for candidate in SCALES:
        scaled = imputer if candidate == 1.0 else type(imputer).from_state({**state, "noise": state["noise"] * candidate})
        scaled.modalities = imputer.modalities
        error = sum(_error(scaled, embeddings, items, mask) for items, mask in cases)
        if error < best:
            best, chosen, scale = error, scaled, candidate
    return chosen, scale


def _error(imputer: Any, embeddings: Sequence[Tensor], items: Tensor, mask: Tensor) -> float:
    truth = [rows[items] for rows in embeddings]
    filled = imputer.impute(truth, mask)
    return float(sum((a.double() - b.double()).square().sum() for a, b in zip(filled, truth, strict=True)))


def held_out_errors(
    imputer: Any, embeddings: Sequence[Float[Tensor, "h d"]], held_out: Bool[Tensor, "h k"], training_mask: Bool[Tensor, "n k"]
) -> dict[tuple[bool, ...], Float[np.ndarray, " k"]]:
    """Pattern -> mean ||imputed - true||^2 of each modality [k] on complete held-out items (0 where the pattern shows it).

    What an imputed entry may be expected to cost: measured on items that neither heads nor imputer have seen, and so free of the
    over-confidence of a model's own prediction. Empty without complete held-out items.
    """
    errors = {}
    for items, mask in held_out_masks(training_mask, held_out):
        truth = [rows[items] for rows in embeddings]
        filled = imputer.impute(truth, mask)
        squared = [(a.double() - b.double()).square().sum(dim=1).mean() for a, b in zip(filled, truth, strict=True)]
        errors[tuple(mask[0].tolist())] = torch.stack(squared).cpu().numpy()
    return errors
