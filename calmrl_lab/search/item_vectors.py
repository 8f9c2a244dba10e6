"""The items of a store as vectors for a search index, and queries to measure the index with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from calmrl_lab.data.table import BLOCK, FeatureTable, Table
from calmrl_lab.errors import CalmrlError
from calmrl_lab.model.alignment_model import AlignmentModel
from calmrl_lab.model.embeddings import Embeddings
from calmrl_lab.registry import known
from calmrl_lab.runtime.progress import tracked
from calmrl_lab.scorers._names import family
from calmrl_lab.search.inner_product_transform import InnerProductTransform
from calmrl_lab.search.vector_file import VectorFile

_PROBES = 1000


@dataclass(frozen=True)
class GalleryVectors:
    """`vectors` [g, r] of the items at the positions `rows` of a table, made of `modalities`, and `probes` [p, r] float32 to measure an index with.

    `facts` and, of items that are compared by another similarity than the cosine, `transform` are what query vectors are made with; index
    vectors (float32) are those of `blocks`.
    """

    modalities: tuple[str, ...]
    vectors: VectorFile
    rows: np.ndarray
    probes: Float[np.ndarray, "q r"]
    facts: dict[str, Any]
    transform: InnerProductTransform | None = None
    longest: float = 0.0

    def blocks(self) -> Iterator[Float[np.ndarray, "b r"]]:
        """What an index holds, a block at a time."""
        for block in self.vectors.blocks():
            yield block if self.transform is None else self.transform.items(block, self.longest)


def by_embeddings(
    model: AlignmentModel, table: Table, modalities: Sequence[str] | None, scorer: str, calibrate: bool, file: Path
) -> GalleryVectors:
    """Items by a scorer whose items are vectors whatever the query, `calibrate` filling their gaps first; the errors of `build_gallery`. The
    vectors go into `file`, a block of items at a time."""
    names = _names(table, modalities)
    columns = [table.modalities.index(name) for name in names]
    if calibrate and model.imputer is None:
        raise CalmrlError(
            "the run has no imputer to fill gaps with", hint="index without --impute-gaps, or train with --impute ppca"
        )
    maker = model.scorer(scorer, "", names)
    if not maker.items_are_vectors:
        raise CalmrlError(
            f"scorer '{scorer}' makes no single vector of an item, and an index holds vectors",
            hint="use centroid, anchor, fused, cosine:<modality>, likelihood-ratio or sum",
        )
    vectors, rows = VectorFile(file), []
    for start, block in _blocks(table):
        embedded = model.embed(block)
        items, mask = embedded.items[:, columns], embedded.mask[:, columns]
        if calibrate:
            seen = torch.zeros_like(embedded.mask)
            seen[:, columns] = mask
            items, mask = embedded.filled(model.imputer, seen)[:, columns], mask.any(dim=1, keepdim=True).expand_as(mask)
        shown = maker.serves(mask)
        rows.append(start + np.flatnonzero(shown.cpu().numpy()))
        vectors.append(maker.vectors(items, mask)[shown].float().cpu().numpy())
    embedded = model.embed(table.sample(_PROBES))
    probes = torch.cat([part[chosen] for part, chosen in zip(embedded.rows, _probed(embedded), strict=True)])
    return GalleryVectors(names, vectors, np.concatenate(rows), probes.float().cpu().numpy(), {})


def by_similarity(
    model: AlignmentModel,
    table: Table,
    modalities: Sequence[str] | None,
    scorer: str,
    file: Path,
    patterns: list[list[str]] | None = None,
) -> GalleryVectors:
    """Items by the similarity of `scorer`, of one modality if it names one (`Similarity.item_vectors`); the errors of `build_gallery`. The
    vectors go into `file`, a block of items at a time; they have terms for `patterns` (default: those of the table)."""
    model = model.compared_by(family(scorer))
    names, single = _names(table, modalities), scorer.partition(":")[2]
    # The scorer refuses a modality that items do not have.
    model.scorer(scorer, names[0], names)
    names = (single,) if single else names
    columns = [table.modalities.index(name) for name in names]
    shown = table.mask[:, columns].any(dim=1)
    patterns = patterns or patterns_of(names, table.mask[:, columns])
    vectors, squares = VectorFile(file), np.zeros(1)
    for _, block in _blocks(table):
        compared = model.represent(block)
        mask = compared.mask[:, columns]
        made = model.similarity.item_vectors(names, patterns, compared.items[:, columns], mask)[mask.any(dim=1)].cpu().numpy()
        squares = squares + np.square(made).sum(axis=0)
        vectors.append(made)
    compared = model.represent(table.sample(_PROBES))
    queries = [
        model.similarity.query_vectors(names, patterns, modality, rows[chosen])
        for modality, rows, chosen in zip(compared.modalities, compared.rows, _probed(compared), strict=True)
    ]
    asked = torch.cat(queries).cpu().numpy()
    transform = InnerProductTransform.of_mean_squares(
        squares / max(len(vectors), 1), np.square(asked).sum(axis=0) / max(len(asked), 1)
    )
    longest = max((transform.longest(block) for block in vectors.blocks()), default=0.0)
    rows = np.flatnonzero(shown.cpu().numpy())
    return GalleryVectors(names, vectors, rows, transform.queries(asked), {"patterns": patterns}, transform, longest)


def _blocks(table: Table) -> Iterator[tuple[int, FeatureTable]]:
    """The blocks of a table, each with the position of its first item."""
    start = 0
    for block in tracked(table.blocks(), "vectors of items", -(-len(table) // BLOCK), "blocks"):
        yield start, block
        start += len(block)


def patterns_of(names: Sequence[str], mask: torch.Tensor) -> list[list[str]]:
    """The different subsets of `names` that items show, `mask` [n, k] saying which; an item that shows nothing has no pattern."""
    kinds = torch.unique(mask[mask.any(dim=1)], dim=0).tolist()
    return [[name for name, seen in zip(names, kind, strict=True) if seen] for kind in kinds]


def _names(table: Table, modalities: Sequence[str] | None) -> tuple[str, ...]:
    """The modalities that items are made of; CalmrlError if they make no sense."""
    names = tuple(table.modalities if modalities is None else modalities)
    if not names or len(set(names)) < len(names):
        raise CalmrlError(
            f"items are made of one modality or several different ones, got '{','.join(names)}'",
            hint=f"the run has: {', '.join(table.modalities)}",
        )
    for name in names:
        known(name, table.modalities, "the run has no modality")
    return names


def _probed(embedded: Embeddings) -> list[torch.Tensor]:
    """Rows of every modality to measure an index with; they are no gallery vectors themselves."""
    counts = [len(part) for part in embedded.rows]
    chosen = np.sort(np.random.default_rng(0).permutation(sum(counts))[:_PROBES])
    starts = np.concatenate([[0], np.cumsum(counts)])
    return [torch.from_numpy(chosen[(chosen >= low) & (chosen < high)] - low) for low, high in pairwise(starts)]
