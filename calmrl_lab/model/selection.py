"""The score that selects a model, mean reciprocal rank over all directions on validation items, and the weights that it chooses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.model.similarity import LikelihoodRatio, Similarity, Sum
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
    reciprocal, first = [], []
    for part in scores:
        positive = part.diagonal().unsqueeze(1)
        # What is not a number is taken for greater than everything: a broken model ranks last, never first.
        greater = (~(part <= positive)).sum(dim=1).double()
        equal = ((part == positive).sum(dim=1).double() - 1).clamp_min(0)
        reciprocal.append((1 / (1 + greater + equal / 2)).mean())
        first.append((torch.where(greater == 0, 1.0, 0.0) / (1 + equal)).mean())
    if not reciprocal:
        return {"validation_mrr": 0.0, "validation_recall_at_1": 0.0}
    return {
        "validation_mrr": float(torch.stack(reciprocal).mean()),
        "validation_recall_at_1": float(torch.stack(first).mean()),
    }


def choose_weights(
    members: Sequence[tuple[Similarity, Vectors]], validation: FeatureTable
) -> tuple[tuple[float, ...], dict[str, float]]:
    """Weights of similarities whose vectors of the validation items are given, and the score of their weighted sum.

    The first has weight 1; the others are weighed one after the other, each by mean reciprocal rank beside those before it.
    """
    first, vectors = members[0]
    parts: list[tuple[Similarity, float]] = [(first, 1.0)]
    tried = BESIDE_LIKELIHOOD_RATIO if isinstance(first, LikelihoodRatio) else BESIDE_COSINE
    score = validation_score(first, vectors, validation)
    for member, own in members[1:]:
        vectors = [torch.cat([before.double(), added.double()], dim=1) for before, added in zip(vectors, own, strict=True)]
        sums = {weight: Sum((*parts, (member, weight))) for weight in tried}
        weighed = tracked(sums.items(), "weighing similarities", len(sums), "weights")
        scores = {weight: validation_score(one, vectors, validation) for weight, one in weighed}
        best = max(tried, key=lambda weight: scores[weight]["validation_mrr"])
        parts.append((member, best))
        score = scores[best]
    return tuple(weight for _, weight in parts), score
