"""The Bayes anchor: the best estimate of an item's anchor given its observed modalities, the gain it predicts, and a threshold on that gain.

With u the anchor of the complete set and a any unit vector that depends on observed embeddings only, E[sin^2 angle(a, u) |
observed] is 1 - a' Pi a, with Pi = E[u u' | observed]. So the leading eigenvector of Pi is the best such vector, never worse in
expectation than the anchor v of the observed embeddings, and its advantage u*' Pi u* - v' Pi v can be computed without seeing
what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import rel_entr
from torch import Tensor

from calmrl_lab.data.patterns import Observations, Pattern, observe
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers.base import Imputer
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.linalg.spectrum import spectrum

# Draws held at once, in numbers.
_WORKING_SET = 2**24
# Probability over held-out items with which a harm rate is guaranteed.
CONFIDENCE = 0.9


@dataclass(frozen=True)
class AnchorPosterior:
    """A row per item: `anchor` [n, d] (the Bayes anchor, signed to point with the observed one), `observed_anchor` [n, d];
    `concentration` = E[cos^2] of the Bayes anchor with the true one, `gain` = its advantage in E[cos^2] over the observed
    anchor, both in [0, 1]; `harm` = probability that it is the worse of the two."""

    anchor: Float[Tensor, "n d"]
    observed_anchor: Float[Tensor, "n d"]
    concentration: Float[Tensor, " n"]
    gain: Float[Tensor, " n"]
    harm: Float[Tensor, " n"]


@torch.no_grad()
def anchor_posterior(
    imputer: PPCA,
    embeddings: Float[Tensor, "n k d"],
    mask: Bool[Tensor, "n k"],
    generator: torch.Generator,
    samples: int = 128,
    unit: bool = True,
) -> AnchorPosterior:
    """Bayes anchors of items under a fitted PPCA, by `samples` draws of the missing embeddings per item; float64.

    With `unit`, embeddings are taken to have norm 1: draws spread around the imputed values by as much as brings their squared norm
    to 1 on average, in the directions of the imputer's covariance, and are returned to the sphere. Otherwise they are the model's own.
    Half of the draws find the anchor, the other half score it: scored on its own draws it would look better than it is. Random
    numbers are the same for every item, so that what an item gets does not depend on the items beside it. Items that miss nothing get
    their own anchor with gain 0; items that show nothing get the prior's anchor, a zero observed anchor, and all of E[cos^2] as gain.
    Raises CalmrlError if the modalities differ in dimension.
    """
    if embeddings.ndim != 3 or mask.shape != embeddings.shape[:2]:
        raise CalmrlError(
            f"embeddings {list(embeddings.shape)} and mask {list(mask.shape)} do not fit: expected [n, k, d] and [n, k]"
        )
    if samples < 4:
        raise CalmrlError(f"samples is {samples}, expected at least 4")
    data = observe(list(embeddings.unbind(dim=1)), mask, imputer.modalities, imputer.dims)
    z = embeddings.double()
    filled = torch.stack([torch.as_tensor(part) for part in imputer.impute(list(z.unbind(dim=1)), mask)], dim=1)
    own = spectrum(z, mask).anchor
    anchor = spectrum(filled, torch.ones_like(mask)).anchor
    concentration = torch.ones(len(z), dtype=torch.float64, device=z.device)
    gain, harm = torch.zeros_like(concentration), torch.zeros_like(concentration)
    for rows, u in _drawn_anchors(imputer, data, filled, samples, generator, unit):
        found, scored = u[:, : samples // 2], u[:, samples // 2 :]
        best = _leading(found)
        after, before = ((scored @ a.unsqueeze(2)).squeeze(2).square() for a in (best, own[rows]))
        # Where nothing is observed there is no sign to follow; that of the imputed anchor is as good as any.
        towards = torch.where(mask[rows].any(dim=1, keepdim=True), own[rows], anchor[rows])
        anchor[rows] = best * torch.where((best * towards).sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
        concentration[rows] = after.mean(dim=1)
        gain[rows] = (after.mean(dim=1) - before.mean(dim=1)).clamp(min=0)
        harm[rows] = (after < before).double().mean(dim=1)
    return AnchorPosterior(anchor, own, concentration, gain, harm)


def _drawn_anchors(
    imputer: Imputer,
    data: Observations,
    filled: Float[Tensor, "n k d"],
    samples: int,
    generator: torch.Generator,
    unit: bool = True,
) -> Iterator[tuple[Int[Tensor, " m"], Float[Tensor, "m s d"]]]:
    """(rows, anchors of complete sets drawn for them), for all items that miss something; some rows at a time."""
    k, d = filled.shape[1:]
    full = torch.ones(1, k, dtype=torch.bool, device=filled.device)
    for pattern in data.patterns():
        if not pattern.missing:
            continue
        errors = _deviations(imputer, pattern, samples, d, filled.device, generator)
        for rows in torch.split(pattern.rows, max(1, _WORKING_SET // (samples * k * d))):
            drawn = filled[rows].unsqueeze(1).expand(-1, samples, -1, -1).clone()
            for j, (deviation, size) in errors.items():
                if unit:
                    left = (1 - filled[rows, j].square().sum(dim=1)).clamp(min=0).sqrt()
                    values = drawn[:, :, j] + left.view(-1, 1, 1) * deviation
                    drawn[:, :, j] = values / torch.linalg.vector_norm(values, dim=2, keepdim=True).clamp(min=1e-300)
                else:
                    drawn[:, :, j] += size * deviation
            u = spectrum(drawn.flatten(0, 1), full.expand(len(rows) * samples, -1)).anchor
            yield rows, u.reshape(len(rows), samples, d)


def _leading(anchors: Float[Tensor, "n s d"]) -> Float[Tensor, "n d"]:
    """Leading eigenvector of the mean of u u' over draws, through the s x s Gram matrix."""
    _, vectors = torch.linalg.eigh(anchors @ anchors.mT)
    leading = (vectors[:, :, -1:].mT @ anchors).squeeze(1)
    return leading / torch.linalg.vector_norm(leading, dim=1, keepdim=True).clamp(min=1e-300)


def realised_gain(posterior: AnchorPosterior, complete: Float[Tensor, "n k d"]) -> Float[Tensor, " n"]:
    """cos^2 with the true anchor of the `complete` sets, Bayes anchor minus observed anchor: negative where calibration did
    harm."""
    truth = spectrum(complete.double(), torch.ones(complete.shape[:2], dtype=torch.bool, device=complete.device)).anchor
    after = (posterior.anchor * truth).sum(dim=1).square()
    before = (posterior.observed_anchor * truth).sum(dim=1).square()
    return after - before


@torch.no_grad()
def calibration_gain(
    imputer: Imputer,
    embeddings: Float[Tensor, "n k d"],
    mask: Bool[Tensor, "n k"],
    filled: Float[Tensor, "n k d"],
    generator: torch.Generator,
    samples: int = 32,
) -> Float[Tensor, " n"]:
    """Predicted cos^2 with the true anchor of the anchor of the `filled` sets, minus that of the observed anchor; float64.

    The gain of filling in these very values; it may be negative. Unit embeddings are expected: a missing one is drawn around
    its filled value with as much variance as brings its squared norm to 1 on average, so that the prediction holds for an
    imputer whose variances are wrong, or that has none. The directions of that variance are the imputer's own where it is a
    PPCA, and all alike otherwise. Random numbers are the same for every item, so that the prediction for an item does not depend
    on the items beside it. 0 for items that miss nothing; for items that show nothing, cos^2 of the calibrated anchor itself.
    """
    data = observe(list(embeddings.unbind(dim=1)), mask, imputer.modalities, imputer.dims)
    before, after = spectrum(embeddings.double(), mask).anchor, spectrum(filled.double(), torch.ones_like(mask)).anchor
    gain = torch.zeros(len(filled), dtype=torch.float64, device=filled.device)
    for rows, u in _drawn_anchors(imputer, data, filled.double(), samples, generator):
        cosines = [(u @ anchor[rows].unsqueeze(2)).squeeze(2).square().mean(dim=1) for anchor in (after, before)]
        gain[rows] = cosines[0] - cosines[1]
    return gain


def _deviations(
    imputer: Imputer, pattern: Pattern, samples: int, dim: int, device: torch.device, generator: torch.Generator
) -> dict[int, tuple[Float[Tensor, "s d"], float]]:
    """Draws about zero of the missing modalities of a pattern, jointly, of mean squared norm 1 each; and what to multiply them with for
    draws of the model. For an imputer that has no covariance all directions are alike, and the factor is 1."""
    if not isinstance(imputer, PPCA):
        shape = (samples, dim)
        draws = {j: torch.randn(shape, generator=generator, dtype=torch.float64) for j in pattern.missing}
        return {j: (drawn.to(device) / dim**0.5, 1.0) for j, drawn in draws.items()}
    posterior = imputer.posterior(pattern.observed, device)
    nowhere = torch.zeros(1, posterior.covariance.shape[0], dtype=torch.float64, device=device)
    draws = posterior.draw(nowhere, pattern.missing, samples, generator)
    sizes = {j: posterior.expected_error(j) ** 0.5 for j in pattern.missing}
    return {j: ((drawn[:, 0] - posterior.means[j]) / sizes[j], sizes[j]) for j, drawn in draws.items()}


def risk_controlling_threshold(
    predicted: np.ndarray,
    realised: np.ndarray,
    level: float = 0.05,
    shares: np.ndarray | None = None,
    confidence: float = CONFIDENCE,
) -> float:
    """The smallest threshold on the predicted gain at which at most `level` of new items are calibrated and harmed, with probability `confidence`
    over the items that it is set on.

    Risk-controlling prediction sets (Bates, Angelopoulos, Lei, Malik and Jordan, JACM 2021) with Hoeffding's bound on the mean of losses in
    [0, 1]. `predicted` and `realised` [n] gains are from held-out complete items whose modalities were hidden as they will be missing, not seen
    when the imputer was fitted; the risk is the share of all items whose predicted gain exceeds the threshold though their realised gain is
    negative. Infinity (calibrate nothing) if there are fewer items than `least_items` says.

    With gains [n, p], every item was shown under p patterns, and `shares` [p] (by default equal) says how often new items have
    each; an item's loss is then its mean over patterns.

    >>> realised = np.where(np.arange(200) < 20, -1.0, 1.0)
    >>> risk_controlling_threshold(np.linspace(0, 1, 200), realised, level=0.2)
    0.0
    """
    predicted, realised = np.asarray(predicted, dtype=np.float64), np.asarray(realised, dtype=np.float64)
    if predicted.shape != realised.shape or predicted.ndim not in (1, 2):
        raise CalmrlError(
            f"predicted gains {list(predicted.shape)} and realised gains {list(realised.shape)} do not fit: "
            "expected [n] or [n, p] each"
        )
    if not 0 < level < 1 or not 0 < confidence < 1:
        raise CalmrlError(f"level is {level} and confidence is {confidence}, expected shares between 0 and 1")
    n, patterns = len(predicted), predicted[0:1].size
    if n < least_items(level, confidence):
        return float("inf")
    weights = np.full(patterns, 1 / max(patterns, 1)) if shares is None else np.asarray(shares, dtype=np.float64)
    allowed = n * _largest_mean(n, level, confidence)
    losses = (realised < 0).reshape(n, patterns) * weights
    order = np.argsort(-predicted.reshape(-1), kind="stable")
    gains, harm = predicted.reshape(-1)[order], losses.reshape(-1)[order].cumsum()
    over = np.flatnonzero(harm > allowed + 1e-9)
    return max(float(gains[over[0]]), 0.0) if len(over) else 0.0


def least_items(level: float, confidence: float = CONFIDENCE) -> int:
    """Held-out items, none of them harmed, from which on a harm rate of `level` can be guaranteed."""
    return int(np.ceil(np.log(1 - confidence) / np.log(1 - level) - 1e-9))


def _largest_mean(n: int, level: float, confidence: float) -> float:
    """The largest mean m of `n` losses in [0, 1] with exp(-n KL(m, level)) <= 1 - confidence: a mean so small comes from an expected loss above
    `level` that seldom (Hoeffding, JASA 1963, Theorem 1)."""
    wanted = -np.log(1 - confidence) / n
    low, high = 0.0, level
    for _ in range(60):
        middle = (low + high) / 2
        divergence = float(rel_entr(middle, level) + rel_entr(1 - middle, 1 - level))
        low, high = (middle, high) if divergence >= wanted else (low, middle)
    return low


def gated_anchor(posterior: AnchorPosterior, threshold: float) -> Float[Tensor, "n d"]:
    """The Bayes anchor where the predicted gain exceeds `threshold` or nothing is observed, the observed anchor elsewhere."""
    shows = (torch.linalg.vector_norm(posterior.observed_anchor, dim=1) > 0).unsqueeze(1)
    use = (posterior.gain > threshold).unsqueeze(1) | ~shows
    return torch.where(use, posterior.anchor, posterior.observed_anchor)
