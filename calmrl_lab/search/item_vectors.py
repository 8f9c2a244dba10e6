"""The items of a store as vectors for a search index, and queries to measure the index with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.errors import CalmrlError
from calmrl_lab.model.alignment_model import AlignmentModel
from calmrl_lab.model.embeddings import Embeddings
from calmrl_lab.registry import known
from calmrl_lab.scorers._names import family
from calmrl_lab.search.inner_product_transform import InnerProductTransform

_PROBES = 1000


@dataclass(frozen=True)
class GalleryVectors:
    """`vectors` [g, r] float32 of the items at `rows` of `embedded`, made of `modalities`, and `probes` [p, r] float32 to measure an index with.

    `facts` and, of items that are compared by another similarity than the cosine, `transform` are what query vectors are made with.
    """

    embedded: Embeddings
    modalities: tuple[str, ...]
    vectors: Float[np.ndarray, "g r"]
    rows: np.ndarray
    probes: Float[np.ndarray, "q r"]
    facts: dict[str, Any]
    transform: InnerProductTransform | None = None


def by_embeddings(
    model: AlignmentModel, table: FeatureTable, modalities: Sequence[str] | None, scorer: str, calibrate: bool
) -> GalleryVectors:
    """Items by a scorer whose items are vectors whatever the query, `calibrate` filling their gaps first; the errors of `build_gallery`."""
    embedded = model.embed(table)
    names = _names(embedded, modalities)
    columns = [embedded.modalities.index(name) for name in names]
    items, mask = embedded.items[:, columns], embedded.mask[:, columns]
    if calibrate:
        if model.imputer is None:
            raise CalmrlError(
                "the run has no imputer to fill gaps with", hint="index without --impute-gaps, or train with --impute ppca"
            )
        seen = torch.zeros_like(embedded.mask)
        seen[:, columns] = mask
        items, mask = embedded.filled(model.imputer, seen)[:, columns], mask.any(dim=1, keepdim=True).expand_as(mask)
    maker = model.scorer(scorer, "", names)
    if not maker.items_are_vectors:
        raise CalmrlError(
            f"scorer '{scorer}' makes no single vector of an item, and an index holds vectors",
            hint="use centroid, anchor, fused, cosine:<modality>, likelihood-ratio or sum",
        )
    shown = maker.serves(mask)
    vectors = maker.vectors(items, mask)[shown].float().cpu().numpy()
    probes = torch.cat([part[rows] for part, rows in zip(embedded.rows, _probed(embedded), strict=True)])
    return GalleryVectors(embedded, names, vectors, np.flatnonzero(shown.cpu().numpy()), probes.float().cpu().numpy(), {})


def by_similarity(model: AlignmentModel, table: FeatureTable, modalities: Sequence[str] | None, scorer: str) -> GalleryVectors:
    """Items by the similarity of `scorer`, of one modality if it names one (`Similarity.item_vectors`); the errors of `build_gallery`."""
    model = model.compared_by(family(scorer))
    compared = model.represent(table)
    names, single = _names(compared, modalities), scorer.partition(":")[2]
    # The scorer refuses a modality that items do not have.
    model.scorer(scorer, names[0], names)
    names = (single,) if single else names
    columns = [compared.modalities.index(name) for name in names]
    mask = compared.mask[:, columns]
    shown = mask.any(dim=1)
    patterns = patterns_of(names, mask)
    items = model.similarity.item_vectors(names, patterns, compared.items[:, columns], mask)[shown].cpu().numpy()
    queries = [
        model.similarity.query_vectors(names, patterns, modality, rows[chosen])
        for modality, rows, chosen in zip(compared.modalities, compared.rows, _probed(compared), strict=True)
    ]
    asked = torch.cat(queries).cpu().numpy()
    transform = InnerProductTransform.of(items, asked)
    rows = np.flatnonzero(shown.cpu().numpy())
    facts = {"patterns": patterns}
    return GalleryVectors(compared, names, transform.items(items), rows, transform.queries(asked), facts, transform)


def patterns_of(names: Sequence[str], mask: torch.Tensor) -> list[list[str]]:
    """The different subsets of `names` that items show, `mask` [n, k] saying which; an item that shows nothing has no pattern."""
    kinds = torch.unique(mask[mask.any(dim=1)], dim=0).tolist()
    return [[name for name, seen in zip(names, kind, strict=True) if seen] for kind in kinds]


def _names(embedded: Embeddings, modalities: Sequence[str] | None) -> tuple[str, ...]:
    """The modalities that items are made of; CalmrlError if they make no sense."""
    names = tuple(embedded.modalities if modalities is None else modalities)
    if not names or len(set(names)) < len(names):
        raise CalmrlError(
            f"items are made of one modality or several different ones, got '{','.join(names)}'",
            hint=f"the run has: {', '.join(embedded.modalities)}",
        )
    for name in names:
        known(name, embedded.modalities, "the run has no modality")
    return names


def _probed(embedded: Embeddings) -> list[torch.Tensor]:
    """Rows of every modality to measure an index with; they are no gallery vectors themselves."""
    counts = [len(part) for part in embedded.rows]
    chosen = np.sort(np.random.default_rng(0).permutation(sum(counts))[:_PROBES])
    starts = np.concatenate([[0], np.cumsum(counts)])
    return [torch.from_numpy(chosen[(chosen >= low) & (chosen < high)] - low) for low, high in pairwise(starts)]
