"""The score that selects a model: mean reciprocal rank over all directions on validation items."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from calmrl_lab.data.table import FeatureTable


def validation_score(embeddings: Sequence[Float[Tensor, "n d"]], table: FeatureTable) -> dict[str, float]:
    """`mean_ranks` of the inner products of `embeddings`."""

    def compared(a: int, b: int, both: Tensor) -> tuple[Tensor, Tensor]:
        scores = embeddings[a][both] @ embeddings[b][both].T
        return scores, scores.T

    return mean_ranks(compared, table)


def mean_ranks(compared: Callable[[int, int, Tensor], tuple[Tensor, Tensor]], table: FeatureTable) -> dict[str, float]:
    """Means over all ordered pairs of modalities of reciprocal rank and Recall@1 (fraction), ties counted as expected rank.

    `compared(a, b, items)` are scores [n, n] of queries of modality a with candidates of modality b, both of the items under the mask
    `items` [N], and those of the opposite direction.
    Each direction ranks among the items that own both modalities; directions with fewer than two such items are left out.
    """
    owned = table.natural_mask()

    def directions() -> Iterator[Tensor]:
        for a, b in itertools.combinations(range(len(table.modalities)), 2):
            both = owned[:, a] & owned[:, b]
            if int(both.sum()) > 1:
                yield from compared(a, b, both)

    return mean_over_directions(directions())


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
