"""The score that selects a model, mean reciprocal rank over all directions on validation items, and the weights that it chooses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.model.similarity import LikelihoodRatio, Similarity
from calmrl_lab.runtime.progress import tracked

# Weights of a cosine beside a likelihood ratio (nats) that validation chooses among: inverse temperatures, down to one that changes little.
BESIDE_LIKELIHOOD_RATIO: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 6.0, 12.5, 25.0, 50.0, 100.0, 200.0)
# Weights of a cosine beside the cosine of the first member, which has 1.
BESIDE_COSINE: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)

Vectors = Sequence[Float[Tensor, "n r"]]


def validation_score(similarity: Similarity, vectors: Vectors, table: FeatureTable) -> dict[str, float]:
    """`mean_ranks` under `similarity`; `vectors` are what it compares of the first row of every item, k tensors."""
    names = table.modalities

    def one_way(a: int, b: int, both: Tensor) -> Tensor:
        left, right = similarity.pair_vectors(names[a], names[b], vectors[a][both], vectors[b][both])
        return left @ right.T

    def compared(a: int, b: int, both: Tensor) -> tuple[Tensor, Tensor]:
        scores = one_way(a, b, both)
        return scores, scores.T if similarity.symmetric else one_way(b, a, both)

    return mean_ranks(compared, table)


def mean_ranks(compared: Callable[[int, int, Tensor], tuple[Tensor, Tensor]], table: FeatureTable) -> dict[str, float]:
    """Means over all ordered pairs of modalities of reciprocal rank and Recall@1 (fraction), ties counted as expected rank.

    `compared(a, b, items)` are scores [n, n] of queries of modality a with candidates of modality b, both of the items under the mask
    `items` [N], and those of the opposite direction. Each direction ranks among the items that own both modalities; directions with fewer
    than two such items are left out.
    """
    pairs = list(pairs_of_modalities(table))
    ranked = tracked(pairs, "validation", unit="pairs of modalities")
    directions = (scores for a, b, both in ranked for scores in compared(a, b, both))
    return mean_over_directions(directions)


def pairs_of_modalities(table: FeatureTable) -> Iterator[tuple[int, int, Bool[Tensor, " n"]]]:
    """Pairs a < b of modalities that at least two items of `table` own, and which items [N] those are."""
    owned = table.natural_mask()
    for a, b in itertools.combinations(range(len(table.modalities)), 2):
        both = owned[:, a] & owned[:, b]
        if int(both.sum()) > 1:
            yield a, b, both


def mean_over_directions(scores: Iterable[Float[Tensor, "n n"]]) -> dict[str, float]:
    """Reciprocal rank and Recall@1 (fraction) of the match on the diagonal, means over queries and then over the directions `scores`; zeros
    for no directions."""
    return _means([reciprocal_and_first(part) for part in scores])


def reciprocal_and_first(scores: Float[Tensor, "n n"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean over rows of the reciprocal rank of the match on the diagonal, and of whether it is first."""
    positive = scores.diagonal().unsqueeze(1)
    # What is not a number is taken for greater than everything: a broken model ranks last, never first.
    greater = (~(scores <= positive)).sum(dim=1).double()
    equal = ((scores == positive).sum(dim=1).double() - 1).clamp_min(0)
    return (1 / (1 + greater + equal / 2)).mean(), (torch.where(greater == 0, 1.0, 0.0) / (1 + equal)).mean()


def _means(ranks: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Means over directions of `reciprocal_and_first`; zeros for no directions."""
    if not ranks:
        return {"validation_mrr": 0.0, "validation_recall_at_1": 0.0}
    reciprocal, first = (float(torch.stack(part).mean()) for part in zip(*ranks, strict=True))
    return {"validation_mrr": reciprocal, "validation_recall_at_1": first}


def choose_weights(
    members: Sequence[tuple[Similarity, Vectors]], validation: FeatureTable
) -> tuple[tuple[float, ...], dict[str, float]]:
    """Weights of similarities whose vectors of the validation items are given, and the score of their weighted sum.

    The first has weight 1; the others are weighed one after the other, each by mean reciprocal rank beside those before it.
    """
    first, vectors = members[0]
    tried = BESIDE_LIKELIHOOD_RATIO if isinstance(first, LikelihoodRatio) else BESIDE_COSINE
    weights: tuple[float, ...] = (1.0,)
    score = validation_score(first, vectors, validation)
    for count in range(1, len(members)):
        scores = _beside(members[:count], weights, members[count], tried, validation)
        best = max(tried, key=lambda weight: scores[weight]["validation_mrr"])
        weights, score = (*weights, best), scores[best]
    return weights, score


def _beside(
    members: Sequence[tuple[Similarity, Vectors]],
    weights: Sequence[float],
    added: tuple[Similarity, Vectors],
    tried: Sequence[float],
    table: FeatureTable,
) -> dict[float, dict[str, float]]:
    """The score of `members` with their weights plus `added`, for each weight that is `tried`; scores of pairs are computed once for all."""
    found: dict[float, list[tuple[Tensor, Tensor]]] = {weight: [] for weight in tried}
    pairs = list(pairs_of_modalities(table))
    for a, b, both in tracked(pairs, "weighing similarities", unit="pairs of modalities"):
        for one, other in ((a, b), (b, a)):
            parts = [_pair_scores(*member, table.modalities, one, other, both) for member in members]
            before = torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(dim=0)
            own = _pair_scores(*added, table.modalities, one, other, both)
            for weight in tried:
                found[weight].append(reciprocal_and_first(before + weight * own))
    return {weight: _means(ranks) for weight, ranks in found.items()}


def _pair_scores(
    similarity: Similarity, vectors: Vectors, names: Sequence[str], a: int, b: int, both: Tensor
) -> Float[Tensor, "n n"]:
    """Float64 scores of queries of modality a with candidates of modality b, of the items `both`."""
    left, right = similarity.pair_vectors(names[a], names[b], vectors[a][both].double(), vectors[b][both].double())
    return left @ right.T
