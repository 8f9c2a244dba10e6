"""The spectral terms of PMRL and CalMRL: alignment of one modality set, uniformity between items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.linalg.spectrum import Sign, spectrum
from calmrl_lab.objectives.terms.base import (
    TEXT,
    Objective,
    flag,
    modality_columns,
    modality_index,
    not_negative,
    one_of,
    positive,
    same_group,
    skipped,
    without_hidden,
)
from calmrl_lab.objectives.terms.matching import MatchingHead, matching_loss, query_and_context
from calmrl_lab.objectives.terms.uniformity import instance_uniformity, one_sided_uniformity

SPECTRA = ("sigma", "lambda")
SIGNS = ("mean", "raw", "squared")


class SpectralObjective(Objective):
    """alignment + uniformity + alpha * matching.

    alignment: -log softmax(sigma / alignment_temperature) of the largest singular value (`spectrum="lambda"`: of the largest eigenvalue,
    sigma^2), over as many values as the set has members; mean over items with at least two, the others are counted in `skipped`.
    uniformity: cross-entropy of anchors against anchors at uniformity_temperature, the item itself as target, over items with an
    anchor. `sign` says how anchors get theirs: `mean` points with the embeddings, `raw` is left to the SVD as in PMRL's released code,
    `squared` compares by squared cosine. matching: see `matching_loss`; observed modalities only; `query` names the modality of the queries, and hard
    negatives are drawn by softmax(cosine / negative_temperature).

    As in CalMRL's released code: `spectrum_of` names the modalities whose spectrum and anchor are taken (None: all; the others still serve matching and
    the imputer), `detach_gathered` stops the gradient of uniformity at the candidates, `detach_context` that of matching at the context.
    """

    aligned_option = "spectrum_of"

    def __init__(
        self,
        modalities: tuple[str, ...],
        dim: int,
        alignment_temperature: float,
        uniformity_temperature: float,
        alpha: float,
        spectrum: str,
        sign: str,
        query: str | None,
        seed: int,
        negative_temperature: float,
        spectrum_of: Sequence[str] | None,
        detach_gathered: bool,
        detach_context: bool,
    ) -> None:
        super().__init__(modalities, dim)
        self.alignment_temperature = positive(self.name, "alignment_temperature", alignment_temperature)
        self.uniformity_temperature = positive(self.name, "uniformity_temperature", uniformity_temperature)
        self.alpha = not_negative(self.name, "alpha", alpha)
        self.spectrum = one_of(self.name, "spectrum", spectrum, SPECTRA)
        self.sign = one_of(self.name, "sign", sign, SIGNS)
        self.query = modality_index(self.name, modalities, query, TEXT)
        self.negative_temperature = positive(self.name, "negative_temperature", negative_temperature)
        self.spectral = modality_columns(self.name, "spectrum_of", modalities, spectrum_of)
        self.detach_gathered = flag(self.name, "detach_gathered", detach_gathered)
        self.detach_context = flag(self.name, "detach_context", detach_context)
        self.generator = torch.Generator().manual_seed(seed)
        if self.alpha:
            self.matching = MatchingHead(dim, seed)

    @property
    def aligned(self) -> tuple[str, ...]:
        return tuple(self.modalities[index] for index in self.spectral)

    def terms(self, embeddings: Tensor, mask: Tensor, imputed: Tensor | None, groups: Tensor | None) -> dict[str, Tensor]:
        """`loss`, `alignment`, `uniformity`, `skipped`, and `matching` if alpha > 0."""
        members, belongs = self.sets(embeddings, mask, imputed)
        same = same_group(groups)
        if len(self.spectral) < len(self.modalities):
            # Slices and a stack: indexing by a list would send the list to the device in every step.
            members, belongs = (torch.stack([part[:, j] for j in self.spectral], dim=1) for part in (members, belongs))
        terms = self._spectral(members, belongs, same)
        loss = terms["alignment"] + terms["uniformity"]
        if self.alpha:
            asked, context, able = query_and_context(without_hidden(embeddings, mask), mask, self.query)
            context = context.detach() if self.detach_context else context
            logits = asked.detach() @ context.detach().mT / self.negative_temperature
            generator = cast(torch.Generator, self.generator)
            terms["matching"] = matching_loss(self.matching, asked, context, able, generator, logits, same)
            loss = loss + self.alpha * terms["matching"]
        return {"loss": loss, **terms}

    def sets(self, embeddings: Tensor, mask: Tensor, imputed: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sets whose spectrum is taken: vectors [B, k, d] and which of them are members [B, k]."""
        return embeddings, mask

    def _spectral(
        self, members: Float[Tensor, "b k d"], belongs: Bool[Tensor, "b k"], same: Bool[Tensor, "b b"] | None
    ) -> dict[str, Tensor]:
        squared = self.sign == "squared"
        values, anchor = spectrum(members, belongs, "mean" if squared else cast(Sign, self.sign))
        size = belongs.sum(dim=1)
        aligned = size >= 2
        # A set of r members has r values; the zeros that stand for the rest must not enter its softmax.
        beyond = torch.arange(belongs.shape[1], device=belongs.device) >= size.clamp_min(1).unsqueeze(1)
        leading = values.square() if self.spectrum == "lambda" else values
        logits = (leading / self.alignment_temperature).masked_fill(beyond, -torch.inf)
        per_item = torch.logsumexp(logits, dim=1) - logits[:, 0]
        alignment = torch.where(aligned, per_item, 0.0).sum() / aligned.sum().clamp_min(1)
        # An item whose embeddings are all zero has no direction to keep apart from others.
        directed = (size > 0) & (values[:, 0].detach() != 0)
        between = one_sided_uniformity if self.detach_gathered else instance_uniformity
        uniformity = between(anchor, directed, self.uniformity_temperature, same, squared)
        return {"alignment": alignment, "uniformity": uniformity, "skipped": skipped(aligned, values)}
