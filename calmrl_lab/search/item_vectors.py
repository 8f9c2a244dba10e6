"""The items of a store under the heads of a run as vectors for a search index, and queries to measure the index with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.run_space import Embeddings, RunSpace
from calmrl_lab.ppca.latent_maps import LatentMaps
from calmrl_lab.registry import nearest
from calmrl_lab.scorers.base import make_scorer
from calmrl_lab.search.overlap_vectors import EvidenceVectors, InnerProductTransform

_PROBES = 1000


@dataclass(frozen=True)
class GalleryVectors:
    """`vectors` [g, r] float32 of the items at `rows` of `embedded`, made of `modalities`; `probes` [p, r] float32 to measure an index with; `facts`
    and, of overlaps, `balance` and `maps` that whoever makes query vectors must know."""

    embedded: Embeddings
    modalities: tuple[str, ...]
    vectors: Float[np.ndarray, "g r"]
    rows: np.ndarray
    probes: Float[np.ndarray, "q r"]
    facts: dict[str, Any]
    balance: InnerProductTransform | None = None
    maps: LatentMaps | None = None


def of_embeddings(
    space: RunSpace, split: str | None, modalities: Sequence[str] | None, scorer: str, calibrate: bool
) -> GalleryVectors:
    """Items by a scorer whose items are vectors whatever the query, `calibrate` filling their gaps first; the errors of `build_gallery`."""
    embedded = space.embed(split)
    names = _names(embedded, modalities)
    columns = [embedded.modalities.index(name) for name in names]
    items, mask = embedded.items[:, columns], embedded.mask[:, columns]
    if calibrate:
        imputer = space.imputer()
        if imputer is None:
            raise CalmrlError(
                f"run '{space.run.path}' has no imputer to fill gaps with",
                hint="index without --calibrate, or train with --impute ppca",
            )
        seen = torch.zeros_like(embedded.mask)
        seen[:, columns] = mask
        items, mask = embedded.filled(imputer, seen)[:, columns], mask.any(dim=1, keepdim=True).expand_as(mask)
    maker = space.scorer(scorer, "", names)
    if not maker.items_are_vectors:
        raise CalmrlError(
            f"scorer '{scorer}' makes no single vector of an item, and an index holds vectors",
            hint="use centroid, anchor, fused, cosine:<modality>, overlap or both",
        )
    shown = maker.serves(mask)
    vectors = maker.vectors(items, mask)[shown].float().cpu().numpy()
    probes = torch.cat([part[rows] for part, rows in zip(embedded.rows, _probed(embedded), strict=True)])
    return GalleryVectors(embedded, names, vectors, np.flatnonzero(shown.cpu().numpy()), probes.float().cpu().numpy(), {})


def of_evidence(space: RunSpace, split: str | None, modalities: Sequence[str] | None, scorer: str) -> GalleryVectors:
    """Items by scorer overlap or both, of one modality if it names one (`EvidenceVectors`); the errors of `build_gallery`."""
    space.run.require_latent()
    embedded = space.embed(split, evidence=True)
    names, known = _names(embedded, modalities), embedded.evidence
    assert known is not None
    kind, _, single = scorer.partition(":")
    # The scorer refuses a modality that items do not have, and a run that chose no weight.
    options = {"weight": known.weight} if kind == "both" else {}
    make_scorer(scorer, names[0], names, maps=known.maps, **options)
    names = (single,) if single else names
    columns = [embedded.modalities.index(name) for name in names]
    mask = embedded.mask[:, columns]
    maker = EvidenceVectors.of_items(known.maps, options.get("weight"), columns, mask)
    shown = mask.any(dim=1)
    items = maker.items(known.items[:, columns], embedded.items[:, columns], mask)[shown].cpu().numpy()
    asked = [maker.queries(j, known.rows[j][rows], embedded.rows[j][rows]) for j, rows in enumerate(_probed(embedded))]
    queries = torch.cat(asked).cpu().numpy()
    balance = InnerProductTransform.of(items, queries)
    facts = {
        "cosine_weight": maker.weight,
        "patterns": [[embedded.modalities[place] for place in pattern] for pattern in maker.patterns],
    }
    rows = np.flatnonzero(shown.cpu().numpy())
    return GalleryVectors(embedded, names, balance.items(items), rows, balance.queries(queries), facts, balance, known.maps)


def _names(embedded: Embeddings, modalities: Sequence[str] | None) -> tuple[str, ...]:
    """The modalities that items are made of; CalmrlError if they make no sense."""
    names = tuple(embedded.modalities if modalities is None else modalities)
    if not names or len(set(names)) < len(names):
        raise CalmrlError(
            f"items are made of one modality or several different ones, got '{','.join(names)}'",
            hint=f"the run has: {', '.join(embedded.modalities)}",
        )
    for name in names:
        if name not in embedded.modalities:
            raise CalmrlError(
                f"the run has no modality '{name}'{nearest(name, list(embedded.modalities))}",
                hint=f"it has: {', '.join(embedded.modalities)}",
            )
    return names


def _probed(embedded: Embeddings) -> list[torch.Tensor]:
    """Rows of every modality to measure an index with; they are no gallery vectors themselves."""
    counts = [len(part) for part in embedded.rows]
    chosen = np.sort(np.random.default_rng(0).permutation(sum(counts))[:_PROBES])
    starts = np.concatenate([[0], np.cumsum(counts)])
    return [torch.from_numpy(chosen[(chosen >= low) & (chosen < high)] - low) for low, high in pairwise(starts)]
