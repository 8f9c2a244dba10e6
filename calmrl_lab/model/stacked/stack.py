"""Similarities of several kinds as one sum: which count, and how much, for which pairs of modalities."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.model.selection import mean_over_directions
from calmrl_lab.model.similarity import Similarity, Sum
from calmrl_lab.model.stacked.canonical_cosine import CanonicalCosine
from calmrl_lab.model.stacked.feature_cosine import FeatureCosine
from calmrl_lab.model.stacked.pair_weighted import PairWeighted
from calmrl_lab.model.stacked.weights import (
    FITTED_CAUTION,
    MOST_ITEMS,
    SHARED_CAUTION,
    cautious_weights,
    logistic_weights,
    rank_weights,
    refined_weights,
)


def stack(
    parts: Mapping[str, Similarity],
    validation: FeatureTable,
    embeddings: Sequence[Float[Tensor, "n d"]],
    groups: Sequence[tuple[int, ...]] = (),
) -> tuple[Sum, dict[str, Any]]:
    """The sum of `parts` whose weights `validation` chooses (`logistic_weights`, then `rank_weights`, and `refined_weights` for every pair of
    modalities), and what was chosen.

    `parts` have names for the record; `embeddings` are those of the first row of each validation item, one [n, d] per modality. The
    modalities of one of `groups` share a feature space: the pairs inside each group have weights in common, and so have all other pairs;
    each pair then moves a little from those. A part that counts nowhere is left out. What few or no validation items fall back on (`cautious_weights`) is
    the cosine of the features inside a group, and the canonical cosine, which fits least to training items, elsewhere. Without such a part, pairs
    without two validation items take the weights of all pairs together, and where nothing tells matches from others, the first part stands alone.
    """
    names, k = validation.modalities, len(validation.modalities)
    scores, items = _scores(parts, validation, embeddings)
    kinds = _kinds(k, groups)
    together = _positive(scores, items, list(scores), np.eye(len(parts))[0])
    inside, outside = (
        _fallback(parts, FeatureCosine.name, SHARED_CAUTION),
        _fallback(parts, CanonicalCosine.name, FITTED_CAUTION),
    )
    table = torch.zeros(len(parts), k, k, dtype=torch.float64)
    records = []
    for pairs in kinds:
        fallback = inside if any(set(pairs[0]) <= set(group) for group in groups) else outside
        weights = _positive(scores, items, pairs, together, fallback)
        for a, b in pairs:
            own = [scores[pair] for pair in ((a, b), (b, a)) if pair in scores]
            table[:, a, b] = torch.from_numpy(refined_weights(own, weights) if own else weights)
        shares = _shares(weights, [scores[pair] for pair in pairs if pair in scores])
        records.append({
            "pairs": _named(pairs, names),
            "weights": dict(zip(parts, weights.tolist(), strict=True)),
            "shares": dict(zip(parts, shares.tolist(), strict=True)),
        })  # fmt: skip
    counted = [number for number in range(len(parts)) if bool((table[number] > 0).any())]
    chosen = list(parts.values())
    total = Sum(tuple((PairWeighted(chosen[number], names, table[number]), 1.0) for number in counted))
    return total, {"weights": records, **_reached(scores, table)}


def said(record: Mapping[str, Any]) -> str:
    """What `stack` chose, in words: for every kind of pairs the parts that count, each with its share of the deviation of the sum."""
    sentences = []
    for part in record["weights"]:
        counted = sorted(((share, name) for name, share in part["shares"].items() if share >= 0.005), reverse=True)
        listed = ", ".join(f"{name} {100 * share:.0f} %" for share, name in counted) or next(iter(part["weights"]))
        pairs = part["pairs"]
        shown = ", ".join(pairs) if len(pairs) < 5 else f"{len(pairs)} pairs ({pairs[0]}, {pairs[1]}, ...)"
        sentences.append(f"{shown}: {listed}")
    return "; ".join(sentences)


def _shares(weights: Float[np.ndarray, " c"], scores: Sequence[Float[Tensor, "c n n"]]) -> Float[np.ndarray, " c"]:
    """How much of the sum each part is: weight times deviation within a query, as shares of one."""
    if not scores:
        return weights / max(float(weights.sum()), 1e-300)
    spread = torch.stack([part.double().std(dim=2, correction=0).mean(dim=1) for part in scores]).mean(dim=0).numpy()
    found: np.ndarray = weights * spread
    return found / max(float(found.sum()), 1e-300)


def _kinds(k: int, groups: Sequence[tuple[int, ...]]) -> list[list[tuple[int, int]]]:
    """Directions that have weights in common."""
    inside = [list(itertools.permutations(group, 2)) for group in groups]
    known = {pair for pairs in inside for pair in pairs}
    outside = [pair for pair in itertools.permutations(range(k), 2) if pair not in known]
    return [*inside, outside] if outside else inside


def _named(pairs: Sequence[tuple[int, int]], names: Sequence[str]) -> list[str]:
    return [f"{names[a]}-{names[b]}" for a, b in pairs if a < b]


# A part that few validation items fall back on, and how much they are distrusted.
_Fallback: TypeAlias = tuple[int, float]


def _fallback(parts: Mapping[str, Similarity], name: str, caution: float) -> _Fallback | None:
    return (list(parts).index(name), caution) if name in parts else None


def _positive(
    scores: Mapping[tuple[int, int], Float[Tensor, "c n n"]],
    items: Mapping[tuple[int, int], Int[Tensor, " n"]],
    pairs: Sequence[tuple[int, int]],
    otherwise: Float[np.ndarray, " c"],
    fallback: _Fallback | None = None,
) -> Float[np.ndarray, " c"]:
    """The weights that the directions `pairs` choose; where nothing finds a match, the part to fall back on alone, or else
    `otherwise`."""
    known = [pair for pair in pairs if pair in scores]
    own = [scores[pair] for pair in known]
    alone = otherwise if fallback is None else np.eye(len(otherwise))[fallback[0]]
    if not own:
        return alone
    weights = logistic_weights(own) if fallback is None else cautious_weights(own, *fallback)
    return rank_weights(own, [items[pair] for pair in known], weights) if weights.any() else alone


@torch.no_grad()
def _scores(
    parts: Mapping[str, Similarity], validation: FeatureTable, embeddings: Sequence[Tensor]
) -> tuple[dict[tuple[int, int], Float[Tensor, "c n n"]], dict[tuple[int, int], Int[Tensor, " n"]]]:
    """Scores of every part for every direction, among at most `MOST_ITEMS` items that have both modalities, and which items those are."""
    owned, rows, names = validation.natural_mask(), validation.first_rows(), validation.modalities
    vectors = [
        [part.vectors(name, features, own) for name, features, own in zip(names, rows, embeddings, strict=True)]
        for part in parts.values()
    ]
    scores, chosen = {}, {}
    for a, b in itertools.permutations(range(len(names)), 2):
        items = (owned[:, a] & owned[:, b]).nonzero().squeeze(1)[:MOST_ITEMS]
        if len(items) < 2:
            continue
        pairs = (
            part.pair_vectors(names[a], names[b], own[a][items], own[b][items])
            for part, own in zip(parts.values(), vectors, strict=True)
        )
        scores[a, b] = torch.stack([(left.double() @ right.double().T).cpu() for left, right in pairs])
        chosen[a, b] = items.cpu()
    return scores, chosen


def _reached(scores: Mapping[tuple[int, int], Float[Tensor, "c n n"]], table: Float[Tensor, "c k k"]) -> dict[str, float]:
    return mean_over_directions(torch.einsum("c,cij->ij", table[:, a, b], part) for (a, b), part in scores.items())
