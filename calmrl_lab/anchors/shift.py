"""Anchor shift: the distance between the anchor of a complete item and the anchor of its observed modalities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.linalg.spectrum import spectrum


def aligned_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """||a - b|| of unit vectors as lines: the sign of b is chosen so that they point the same way. In [0, sqrt 2]; NaN for a
    zero vector."""
    sign = torch.where((a * b).sum(dim=1, keepdim=True) < 0, -1.0, 1.0).to(a.dtype)
    distance = torch.linalg.vector_norm(a - sign * b, dim=1)
    defined = (torch.linalg.vector_norm(a, dim=1) > 0) & (torch.linalg.vector_norm(b, dim=1) > 0)
    return torch.where(defined, distance, torch.nan)


def anchor_shift(
    embeddings: Float[Tensor, "n k d"], complete: Bool[Tensor, "n k"], observed: Bool[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """Shift of the anchor of the modalities `complete` when only `observed` of them are seen; float64, in [0, sqrt 2].

    >>> import torch
    >>> from calmrl_lab.anchors.shift import anchor_shift
    >>> z = torch.tensor([[[1.0, 0.0], [0.5, 0.75**0.5]]])  # one item, two embeddings with 60 degrees between them
    >>> anchor_shift(z, torch.tensor([[True, True]]), torch.tensor([[True, False]])).round(decimals=4)
    tensor([0.5176], dtype=torch.float64)
    """
    terms = shift_terms(embeddings, complete, observed)
    return aligned_distance(terms.anchor, terms.observed_anchor)


def calibrated_shift(
    embeddings: Float[Tensor, "n k d"],
    complete: Bool[Tensor, "n k"],
    observed: Bool[Tensor, "n k"],
    imputed: Float[Tensor, "n k d"],
) -> Float[Tensor, " n"]:
    """Shift that is left when the hidden modalities (`complete` and not `observed`) are filled from `imputed`; float64, in [0,
    sqrt 2].

    >>> import torch
    >>> from calmrl_lab.anchors.shift import anchor_shift, shift_terms
    >>> from calmrl_lab.anchors.shift import calibrated_shift
    >>> z = torch.nn.functional.normalize(torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> complete = torch.ones(5, 4, dtype=torch.bool)
    >>> observed = torch.tensor([True, True, False, False]).expand(5, 4)
    >>> calibrated_shift(z, complete, observed, imputed=z).abs().max() < 1e-6  # imputed without error: no shift is left
    tensor(True)
    """
    check_entries(embeddings, complete, observed)
    if imputed.shape != embeddings.shape:
        raise CalmrlError(f"imputed embeddings have shape {list(imputed.shape)}, expected {list(embeddings.shape)}")
    truth = embeddings.double()
    filled = torch.where(observed.unsqueeze(2), truth, imputed.double())
    return aligned_distance(spectrum(truth, complete).anchor, spectrum(filled, complete).anchor)


@dataclass(frozen=True)
class ShiftTerms:
    """What all bounds are made of, a row per item, float64."""

    singular_values: Float[Tensor, "n k"]
    observed_singular_values: Float[Tensor, "n k"]
    hidden_norm: Float[Tensor, " n"]
    captured: Float[Tensor, " n"]
    hidden_captured: Float[Tensor, " n"]
    smallest: Float[Tensor, " n"]
    anchor: Float[Tensor, "n d"]
    observed_anchor: Float[Tensor, "n d"]

    @property
    def eigengap(self) -> Float[Tensor, " n"]:
        """lam_1 - lam_2 of all embeddings."""
        return self.singular_values[:, 0].square() - self.singular_values[:, 1].square()

    @property
    def share(self) -> Float[Tensor, " n"]:
        """R = rho / lam_1, in (0, 1]: how much of the largest eigenvalue the observed anchor captures."""
        return (self.captured / self.singular_values[:, 0].square()).clamp(max=1.0)


def shift_terms(embeddings: Float[Tensor, "n k d"], complete: Bool[Tensor, "n k"], observed: Bool[Tensor, "n k"]) -> ShiftTerms:
    """Spectra and overlaps for the bounds below; `complete` are the modalities whose truth is known, `observed` a subset of
    them.

    Raises CalmrlError for shapes that disagree or a modality that is observed but not in `complete`.

    >>> import torch
    >>> from calmrl_lab.anchors.shift import anchor_shift, shift_terms
    >>> z = torch.nn.functional.normalize(torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> complete = torch.ones(5, 4, dtype=torch.bool)
    >>> observed = torch.tensor([True, True, False, False]).expand(5, 4)
    >>> shift_terms(z, complete, observed).singular_values.shape
    torch.Size([5, 4])
    """
    check_entries(embeddings, complete, observed)
    z = embeddings.double()
    whole, part = spectrum(z, complete), spectrum(z, observed)
    hidden = spectrum(z, complete & ~observed)
    overlap = torch.einsum("nkd,nd->nk", torch.where(complete.unsqueeze(2), z, 0.0), part.anchor).square()
    count = complete.sum(dim=1, keepdim=True)
    smallest = whole.singular_values.gather(1, (count - 1).clamp(min=0)).squeeze(1).square()
    return ShiftTerms(
        whole.singular_values,
        part.singular_values,
        hidden.singular_values[:, 0],
        overlap.sum(dim=1),
        (overlap * ~observed).sum(dim=1),
        smallest,
        whole.anchor,
        part.anchor,
    )


def check_entries(embeddings: Tensor, complete: Tensor, observed: Tensor) -> None:
    if (
        embeddings.ndim != 3
        or embeddings.shape[:2] != complete.shape
        or complete.shape != observed.shape
        or complete.shape[1] < 2
    ):
        raise CalmrlError(
            f"embeddings {list(embeddings.shape)}, complete {list(complete.shape)} and observed {list(observed.shape)} do not fit: "
            "expected [n, k, d], [n, k] and [n, k] with k >= 2"
        )
    if bool((observed & ~complete).any()):
        raise CalmrlError("a modality is observed whose truth is not known (observed must be a part of complete)")
