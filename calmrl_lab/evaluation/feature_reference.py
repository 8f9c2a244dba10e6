"""Reference scores of stored features: the cosine of modalities whose features have the same dimension, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.evaluation.retrieval import Ranks, rank_both
from calmrl_lab.evaluation.score_rows import hits, score_rows
from calmrl_lab.evaluation.significance import interval
from calmrl_lab.model.embeddings import owners_of
from calmrl_lab.model.stacked.feature_cosine import FeatureCosine

if TYPE_CHECKING:
    import pandas as pd


@torch.no_grad()
def feature_rows(table: FeatureTable, directions: Sequence[tuple[str, str]]) -> pd.DataFrame | None:
    """Score rows of the cosine of unit-norm features, for those of `directions` whose two modalities have features of one dimension; None if
    there are none."""
    import pandas as pd

    dims = table.dims
    equal = [(query, gallery) for query, gallery in directions if dims[query] == dims[gallery]]
    parts = []
    for query, gallery in equal:
        both = FeatureCosine(((query, gallery),), (dims[query],), {})
        places = [table.modalities.index(name) for name in (query, gallery)]
        left, right = (both.vectors(table.modalities[place], table.rows[place], table.rows[place]) for place in places)
        owners = [owners_of(table.offsets[place]) for place in places]
        found: Ranks = rank_both(left, right, owners[0], owners[1])[0]
        nothing = np.full(len(table), "")
        about = {"query": query, "gallery": gallery, "scorer": both.name}
        parts.append(score_rows(found, owners[0], table.ids, table.group, nothing, **about))
    return pd.concat(parts, ignore_index=True) if parts else None


def beside_features(scores: pd.DataFrame, features: pd.DataFrame | None) -> list[dict[str, Any]]:
    """For each direction of `features` Recall@1 in percent of the features' own cosine (`feature_recall_at_1`) and what a run is above it
    (`difference`), with its 95 % interval (`low`, `high`), paired by query, over groups of queries."""
    if features is None:
        return []
    records, generator = [], np.random.default_rng(0)
    for (query, gallery), theirs in features.groupby(["query", "gallery"], sort=False):
        ours = scores[(scores["query"] == query) & (scores["gallery"] == gallery)]
        gains = 100 * (hits(ours, 1) - hits(theirs, 1))
        found = interval(gains, generator, theirs["group"].to_numpy())
        records.append({
            "query": query, "gallery": gallery, "feature_recall_at_1": float(100 * hits(theirs, 1).mean()),
            "difference": found.value, "low": found.low, "high": found.high,
        })  # fmt: skip
    return records


def below_features(records: Sequence[dict[str, Any]]) -> str | None:
    """One sentence that names the directions in which a run is below the cosine of its features, beyond the interval; None if there are none."""
    below = [row for row in records if row["high"] < 0]
    if not below:
        return None
    named = ", ".join(f"{row['query']}->{row['gallery']} by {-row['difference']:.1f} points" for row in below)
    return (
        f"below the cosine of the features as they come, which needs no training: {named}. These features share a space already; --method raw "
        "scores them as they are, and the recommended method (no --method) keeps what is there"
    )
