"""Bounds on the anchor shift: those that are proven, beside those that the paper printed.

Letters: Z [d, k] the embeddings of an item as columns, s_1 >= ... >= s_k its singular values, lam = s^2, M = Z Z', u its anchor
(leading left singular vector), v the anchor of the observed columns only, theta the angle between the lines of u and v, Z_- the
hidden columns, rho = v'Mv = lam_1 of the observed columns + eta^2, R = rho / lam_1. The shift is ||u - v|| after aligning
signs, sqrt(2 (1 - cos theta)). "Printed" refers to Theorem 1 of arXiv 2511.12034. Items without an anchor (nothing observed)
get NaN everywhere.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calmrl_lab.anchors.shift import ShiftTerms, aligned_distance, calibrated_shift, check_entries, shift_terms
from calmrl_lab.errors import CalmrlError
from calmrl_lab.linalg.spectrum import spectrum

# The largest shift of two lines: orthogonal anchors.
_LARGEST = 2**0.5


def lower_printed(terms: ShiftTerms) -> Float[Tensor, " n"]:
    """sqrt(2 (1 - (s_1 of the observed + eta^2) / s_1)): Theorem 1 as printed, with singular values.

    PROVEN for unit columns (it follows from `lower_ratio`, since s_1 of the observed is at least 1), and mostly vacuous: 0 is
    returned where the radicand is negative. False for columns shorter than 1, such as shrunken imputations. With eigenvalues in
    place of singular values it is FALSE for the shift (and true for the distance of the projectors).

    >>> import torch
    >>> from calmrl_lab.anchors.shift import anchor_shift, shift_terms
    >>> from calmrl_lab.anchors.bounds import lower_printed
    >>> z = torch.nn.functional.normalize(torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> complete = torch.ones(5, 4, dtype=torch.bool)
    >>> observed = torch.tensor([True, True, False, False]).expand(5, 4)
    >>> bound = lower_printed(shift_terms(z, complete, observed))
    >>> bool((bound <= anchor_shift(z, complete, observed) + 1e-9).all())
    True
    """
    ratio = (terms.observed_singular_values[:, 0] + terms.hidden_captured) / terms.singular_values[:, 0]
    return _guard(terms, (2 * (1 - ratio)).clamp(min=0).sqrt())


def lower_ratio(terms: ShiftTerms) -> Float[Tensor, " n"]:
    """sqrt(2 (1 - sqrt R)). PROVEN: v'Mv >= lam_1 cos^2 theta as M is positive semi-definite, so cos^2 theta <= R.

    >>> import torch
    >>> from calmrl_lab.anchors.shift import anchor_shift, shift_terms
    >>> from calmrl_lab.anchors.bounds import lower_ratio
    >>> z = torch.nn.functional.normalize(torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> complete = torch.ones(5, 4, dtype=torch.bool)
    >>> observed = torch.tensor([True, True, False, False]).expand(5, 4)
    >>> bound = lower_ratio(shift_terms(z, complete, observed))
    >>> bool((bound <= anchor_shift(z, complete, observed) + 1e-9).all())
    True
    """
    return _guard(terms, (2 * (1 - terms.share.sqrt())).clamp(min=0).sqrt())


def lower_sandwich(terms: ShiftTerms) -> Float[Tensor, " n"]:
    """From sin^2 theta >= (lam_1 - rho) / (lam_1 - lam_k). PROVEN: v lies in the range of Z, where v'Mv >= lam_1 cos^2 + lam_k
    sin^2.

    Never looser than `lower_ratio`; an equality for two modalities.

    >>> import torch
    >>> from calmrl_lab.anchors.shift import anchor_shift, shift_terms
    >>> from calmrl_lab.anchors.bounds import lower_sandwich
    >>> z = torch.nn.functional.normalize(torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> complete = torch.ones(5, 4, dtype=torch.bool)
    >>> observed = torch.tensor([True, True, False, False]).expand(5, 4)
    >>> bound = lower_sandwich(shift_terms(z, complete, observed))
    >>> bool((bound <= anchor_shift(z, complete, observed) + 1e-9).all())
    True
    """
    largest = terms.singular_values[:, 0].square()
    # Divided by a small gap, rounding of the numerator would be a bound above zero.
    rounding = 8 * torch.finfo(largest.dtype).eps * largest
    return _guard(terms, _shift_of((largest - terms.captured - rounding) / (largest - terms.smallest), when_undefined=0.0))


def upper_sandwich(terms: ShiftTerms) -> Float[Tensor, " n"]:
    """From sin^2 theta <= (lam_1 - rho) / (lam_1 - lam_2). PROVEN: v'Mv <= lam_1 cos^2 + lam_2 sin^2. sqrt 2 where lam_1 =
    lam_2.

    >>> import torch
    >>> from calmrl_lab.anchors.shift import anchor_shift, shift_terms
    >>> from calmrl_lab.anchors.bounds import upper_sandwich
    >>> z = torch.nn.functional.normalize(torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> complete = torch.ones(5, 4, dtype=torch.bool)
    >>> observed = torch.tensor([True, True, False, False]).expand(5, 4)
    >>> bound = upper_sandwich(shift_terms(z, complete, observed))
    >>> bool((bound >= anchor_shift(z, complete, observed) - 1e-9).all())
    True
    """
    largest = terms.singular_values[:, 0].square()
    return _guard(terms, _shift_of((largest - terms.captured) / terms.eigengap, when_undefined=1.0))


def upper_gap(terms: ShiftTerms) -> Float[Tensor, " n"]:
    """From sin theta <= ||Z_-||^2 / (lam_1 - lam_2 of the observed). PROVEN: restrict (lam_1 - M_observed) u = Z_- Z_-' u to
    the complement of v.

    Never looser than `upper_printed`.

    >>> import torch
    >>> from calmrl_lab.anchors.shift import anchor_shift, shift_terms
    >>> from calmrl_lab.anchors.bounds import upper_gap
    >>> z = torch.nn.functional.normalize(torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> complete = torch.ones(5, 4, dtype=torch.bool)
    >>> observed = torch.tensor([True, True, False, False]).expand(5, 4)
    >>> bound = upper_gap(shift_terms(z, complete, observed))
    >>> bool((bound >= anchor_shift(z, complete, observed) - 1e-9).all())
    True
    """
    gap = terms.singular_values[:, 0].square() - terms.observed_singular_values[:, 1].square()
    sine = terms.hidden_norm.square() / gap
    return _guard(terms, _shift_of(sine.square(), when_undefined=1.0))


def upper_printed(terms: ShiftTerms) -> Float[Tensor, " n"]:
    """sqrt 2 ||Z_-|| / (s_1 - s_2): Theorem 1 as printed. PROVEN, and vacuous (above sqrt 2, infinite at s_1 = s_2) for most
    items.

    >>> import torch
    >>> from calmrl_lab.anchors.shift import anchor_shift, shift_terms
    >>> from calmrl_lab.anchors.bounds import upper_printed
    >>> z = torch.nn.functional.normalize(torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> complete = torch.ones(5, 4, dtype=torch.bool)
    >>> observed = torch.tensor([True, True, False, False]).expand(5, 4)
    >>> bound = upper_printed(shift_terms(z, complete, observed))
    >>> bool((bound >= anchor_shift(z, complete, observed) - 1e-9).all())
    True
    """
    gap = terms.singular_values[:, 0] - terms.singular_values[:, 1]
    # Hiding nothing shifts nothing, whatever the gap.
    bound = torch.where(terms.hidden_norm > 0, _LARGEST * terms.hidden_norm / gap.clamp(min=0), 0.0)
    return _guard(terms, bound)


def upper_rotation(terms: ShiftTerms) -> Float[Tensor, " n"]:
    """From sin 2 theta <= ||Z_-||^2 / g where ||Z_-||^2 < g, the gap lam_1 - lam_2 of the observed; then theta < 45 degrees.
    PROVEN.

    Compress M to the span of u and v and solve for the rotation. sqrt 2 where the condition fails.

    >>> import torch
    >>> from calmrl_lab.anchors.shift import anchor_shift, shift_terms
    >>> from calmrl_lab.anchors.bounds import upper_rotation
    >>> z = torch.nn.functional.normalize(torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> complete = torch.ones(5, 4, dtype=torch.bool)
    >>> observed = torch.tensor([True, True, False, False]).expand(5, 4)
    >>> bound = upper_rotation(shift_terms(z, complete, observed))
    >>> bool((bound >= anchor_shift(z, complete, observed) - 1e-9).all())
    True
    """
    return _guard(terms, _rotation_bound(terms.hidden_norm.square(), _observed_gap(terms.observed_singular_values)))


def upper_observed_only(
    embeddings: Float[Tensor, "n k d"], observed: Bool[Tensor, "n k"], hidden_count: Int[Tensor, " n"] | int
) -> Float[Tensor, " n"]:
    """A bound on the shift that needs no hidden truth: `upper_rotation` with ||Z_-||^2 <= number of hidden unit vectors.
    PROVEN.

    `hidden_count` is how many modalities are hidden. sqrt 2 where the observed gap is no larger than that, which is most items;
    NaN where nothing is observed. Raises CalmrlError unless the observed embeddings have unit norm (to 1e-3), which the bound
    rests on.

    >>> import torch
    >>> from calmrl_lab.anchors.shift import anchor_shift, shift_terms
    >>> from calmrl_lab.anchors.bounds import upper_observed_only
    >>> z = torch.nn.functional.normalize(torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> complete = torch.ones(5, 4, dtype=torch.bool)
    >>> observed = torch.tensor([True, True, False, False]).expand(5, 4)
    >>> bool((upper_observed_only(z, observed, hidden_count=2) >= anchor_shift(z, complete, observed) - 1e-9).all())
    True
    """
    z = embeddings.double()
    norms = torch.linalg.vector_norm(z, dim=2)[observed]
    if bool(((norms - 1).abs() > 1e-3).any()):
        raise CalmrlError(
            f"this bound holds for unit embeddings only (norms from {float(norms.min()):.3g} to {float(norms.max()):.3g} were given)"
        )
    values = spectrum(z, observed).singular_values
    hidden = torch.as_tensor(hidden_count, device=z.device).to(torch.float64)
    bound = _rotation_bound(hidden.expand(len(z)), _observed_gap(values))
    return torch.where(observed.any(dim=1), bound, torch.nan)


def _observed_gap(singular_values: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    return singular_values[:, 0].square() - singular_values[:, 1].square()


def _rotation_bound(hidden: Tensor, gap: Tensor) -> Tensor:
    double_sine = torch.where(hidden > 0, hidden / gap.clamp(min=1e-300), 0.0)
    angle = 0.5 * torch.asin(double_sine.clamp(max=1.0))
    # At equality the rotation may be anything; rounding must not decide.
    return torch.where(double_sine < 1 - 1e-9, 2 * torch.sin(angle / 2), _LARGEST)


def helpful_error(terms: ShiftTerms) -> Float[Tensor, " n"]:
    """Corrected Corollary 3: an imputation error ||Zhat - Z||_2 below (s_1 - s_2) S / (1 + S), S = sqrt(1 - R), reduces the
    shift. PROVEN.

    With E the error, the imputed anchor is off by sin <= E / (s_1 - s_2 - E), and the observed one by at least sin >= S
    (`lower_ratio`). For m imputed vectors, each within eps of the truth, E <= sqrt(m) eps. It is a statement about truth:
    nobody who lacks Z can check it.
    """
    lost = (1 - terms.share).clamp(min=0).sqrt()
    gap = terms.singular_values[:, 0] - terms.singular_values[:, 1]
    return _guard(terms, gap * lost / (1 + lost))


def helpful_error_printed(terms: ShiftTerms, hidden_count: Int[Tensor, " n"] | int) -> Float[Tensor, " n"]:
    """Corollary 3 as printed: an error per imputed vector below (s_1 - s_2) sqrt(1 - (s_1 of the observed + eta^2) / s_1) /
    sqrt(hidden).

    FALSE: errors below it can increase the shift (the tests find such sets by gradient; eight modalities, one observed, are
    enough). It takes the gap of Z for that of the imputed set, which lacks the factor 1 / (1 + S) of `helpful_error`.
    """
    ratio = (terms.observed_singular_values[:, 0] + terms.hidden_captured) / terms.singular_values[:, 0]
    gap = terms.singular_values[:, 0] - terms.singular_values[:, 1]
    hidden = torch.as_tensor(hidden_count, device=gap.device).to(gap)
    return _guard(terms, gap * (1 - ratio).clamp(min=0).sqrt() / hidden.clamp(min=1).sqrt())


def certified_helpful(
    filled: Float[Tensor, "n k d"], complete: Bool[Tensor, "n k"], observed: Bool[Tensor, "n k"], error: Float[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    """Whether imputation certainly reduces the shift, if ||Zhat - Z||_2 is at most `error`: needs the imputed set only. PROVEN.

    sin of the angle between the imputed anchor and the true one is at most E / (shat_1 - shat_2 - E) = sin r; if the observed
    anchor is more than 2 r away from the imputed one, it is more than r away from the true one. Honest warning: with errors of
    real size next to nothing is ever certified; the Bayes anchor says more.
    """
    check_entries(filled, complete, observed)
    whole, part = spectrum(filled.double(), complete), spectrum(filled.double(), observed)
    margin = whole.singular_values[:, 0] - whole.singular_values[:, 1] - error
    sine = torch.where(margin > 0, error / margin.clamp(min=1e-300), torch.inf)
    radius = torch.asin(sine.clamp(max=1.0))
    between = 2 * torch.asin((aligned_distance(whole.anchor, part.anchor) / 2).clamp(max=1.0))
    return (sine < 1) & (between > 2 * radius)


def _shift_of(sine_squared: Tensor, when_undefined: float) -> Tensor:
    """Shift of lines whose sin^2 is given, clamped to [0, 1]; 0/0 counts as `when_undefined`."""
    clean = torch.where(torch.isnan(sine_squared), when_undefined, sine_squared).clamp(0.0, 1.0)
    # 1 - sqrt(1 - x) without cancellation for small x.
    return (2 * clean / (1 + (1 - clean).sqrt())).sqrt()


def _guard(terms: ShiftTerms, bound: Tensor) -> Tensor:
    defined = (terms.singular_values[:, 0] > 0) & (terms.observed_singular_values[:, 0] > 0)
    return torch.where(defined, bound, torch.nan)


def anchor_report(
    embeddings: Float[Tensor, "n k d"], observed: Bool[Tensor, "n k"], imputed: Float[Tensor, "n k d"]
) -> dict[str, Float[Tensor, " n"]]:
    """Columns for complete items shown only in part: what calibration does to the anchor shift, and the best proven bounds on
    it.

    shift_observed: shift without imputation; shift_calibrated: with `imputed` in the gaps; lower, upper: proven bounds on
    shift_observed (they need the truth); eigengap: lam_1 - lam_2 of all embeddings. Float64, NaN for an item that shows
    nothing.
    """
    complete = torch.ones_like(observed)
    terms = shift_terms(embeddings, complete, observed)
    shift = aligned_distance(terms.anchor, terms.observed_anchor)
    return {
        "shift_observed": shift,
        "shift_calibrated": torch.where(shift.isnan(), torch.nan, calibrated_shift(embeddings, complete, observed, imputed)),
        "lower": torch.maximum(lower_ratio(terms), lower_sandwich(terms)),
        "upper": torch.stack([upper_sandwich(terms), upper_gap(terms), upper_rotation(terms)]).amin(dim=0),
        "eigengap": terms.eigengap,
    }
