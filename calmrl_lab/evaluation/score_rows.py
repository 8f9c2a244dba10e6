"""Score rows: the record of every evaluated query, and the recall table that everything is reported from.

One row per query that has a positive, in a pandas table. Every table has the columns of `ROW`; a sweep adds what it varies. Rows of one query
are never averaged before they are kept, so that intervals and paired comparisons stay possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from calmrl_lab.evaluation.retrieval import Ranks, discounted_gain, expected_rank, recall, reciprocal_rank
from calmrl_lab.evaluation.significance import Sums, interval

if TYPE_CHECKING:
    import pandas as pd

COUNTS = ("greater", "equal", "best_positives", "positives", "candidates")
# query, gallery: modalities, several joined by +; scorer: how pairs or sets were compared; gallery_scenario: what was hidden from the gallery;
# item, group, pattern: whose query it is, and what the item shows; then the counts of `Ranks`.
ROW = ("query", "gallery", "scorer", "gallery_scenario", "item", "group", "pattern", *COUNTS)
DIRECTION = ("query", "gallery")
DEPTHS = (1, 5, 10)


def score_rows(
    ranks: Ranks, owner: Tensor, ids: np.ndarray, group: np.ndarray, patterns: np.ndarray, **about: Any
) -> pd.DataFrame:
    """One row per query that has a positive; `about` are columns that all rows share.

    `owner` [Q] is the item of every query; `ids`, `group` and `patterns` [N] describe the items.
    """
    import pandas as pd

    answerable = np.asarray(ranks.positives) > 0
    item = owner.cpu().numpy()[answerable]
    columns: dict[str, Any] = {"gallery_scenario": "full", **about}
    columns |= {"item": ids[item], "group": group[item], "pattern": patterns[item]}
    frame = pd.DataFrame({**columns, **{name: np.asarray(getattr(ranks, name))[answerable] for name in COUNTS}})
    return frame[[*ROW, *(name for name in frame.columns if name not in ROW)]]


def ranks_of(rows: pd.DataFrame) -> Ranks:
    """The ranks that score rows hold."""
    return Ranks(*(rows[name].to_numpy() for name in COUNTS))


def hits(rows: pd.DataFrame, k: int) -> Float[np.ndarray, " q"]:
    """Recall@k of every row, in 0..1; ties as expected under a random order (`retrieval.recall`)."""
    return recall(ranks_of(rows), k)


def chance(rows: pd.DataFrame, k: int) -> Float[np.ndarray, " q"]:
    """Recall@k of every row, in 0..1, if the whole gallery came in a random order."""
    positives, candidates = (rows[name].to_numpy() for name in ("positives", "candidates"))
    nothing = np.zeros_like(positives)
    return recall(Ranks(nothing, candidates - positives, positives, positives, candidates), k)


def expected_ranks(rows: pd.DataFrame) -> Float[np.ndarray, " q"]:
    """The rank of every row's first positive (`retrieval.expected_rank`)."""
    return expected_rank(ranks_of(rows))


def recall_table(
    rows: pd.DataFrame, by: Sequence[str] = DIRECTION, generator: np.random.Generator | None = None
) -> pd.DataFrame:
    """One row for each combination of the columns `by`, in the order in which they come.

    Columns: those of `by`, Recall@1/5/10 in percent with 95 % intervals over groups of queries, and over seeds where the rows have a column
    `seed` (recall_at_1, low_1, high_1, ...), median_rank, mean_rank, mrr, ndcg, chance_recall_at_1 (percent) and queries. Ties count as expected
    under a random order.
    """
    import pandas as pd

    generator, table = generator or np.random.default_rng(0), []
    for key, part in rows.groupby(list(by), sort=False, observed=True):
        row: dict[str, Any] = dict(zip(by, key, strict=True))
        units = part["group"].to_numpy(), part["seed"].to_numpy() if "seed" in part.columns else None
        for k in DEPTHS:
            found = interval(100 * hits(part, k), generator, *units, top=100)
            row |= {f"recall_at_{k}": found.value, f"low_{k}": found.low, f"high_{k}": found.high}
        ranks = ranks_of(part)
        places = expected_rank(ranks)
        row |= {"median_rank": float(np.median(places)), "mean_rank": float(places.mean())}
        row |= {"mrr": float(reciprocal_rank(ranks).mean()), "ndcg": float(discounted_gain(ranks).mean())}
        row |= {"chance_recall_at_1": 100 * float(chance(part, 1).mean()), "queries": len(part)}
        table.append(row)
    return pd.DataFrame(table)


def direction_shares(
    rows: pd.DataFrame, values: Float[np.ndarray, " q"]
) -> tuple[Float[np.ndarray, " m"], Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """What every group of queries adds to the mean of `values` over directions, with the group and the seed that it belongs to.

    Every direction counts alike, however many queries it has, and so does every seed (`rows` may have a column `seed`). The mean over groups is
    the mean over directions (`significance.Sums.shares`). This is the mean that reports, `compare` and `evaluate` give.
    """
    import pandas as pd

    group, groups = pd.factorize(rows["group"])
    direction = rows.groupby(list(DIRECTION), sort=False, observed=True).ngroup().to_numpy()
    seed = pd.factorize(rows["seed"])[0] if "seed" in rows.columns else np.zeros(len(rows), dtype=np.int64)
    shape = (int(seed.max()) + 1, len(groups), int(direction.max()) + 1)
    totals, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(totals, (seed, group, direction), values)
    np.add.at(counts, (seed, group, direction), 1.0)
    shares = Sums(tuple(range(shape[0])), tuple(map(str, groups)), totals, counts).shares(range(shape[2]))
    return shares.ravel(), np.tile(np.arange(shape[1]), shape[0]), np.repeat(np.arange(shape[0]), shape[1])


def mean_recalls(rows: pd.DataFrame, generator: np.random.Generator | None = None) -> dict[str, float]:
    """The mean over directions of Recall@1/5/10 in percent with 95 % intervals (recall_at_1, low_1, high_1, ...), and chance_recall_at_1."""
    generator = generator or np.random.default_rng(0)
    found: dict[str, float] = {}
    for k in DEPTHS:
        one = interval(*_for_interval(rows, 100 * hits(rows, k), generator), top=100)
        found |= {f"recall_at_{k}": one.value, f"low_{k}": one.low, f"high_{k}": one.high}
    return found | {"chance_recall_at_1": 100 * float(direction_shares(rows, chance(rows, 1))[0].mean())}


def _for_interval(
    rows: pd.DataFrame, values: Float[np.ndarray, " q"], generator: np.random.Generator
) -> tuple[np.ndarray, np.random.Generator, np.ndarray, np.ndarray]:
    shares, group, seed = direction_shares(rows, values)
    return shares, generator, group, seed
