"""Recall and speed of an approximate index against the exact search, by search effort."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.significance import interval
from calmrl_lab.runtime.progress import tracked
from calmrl_lab.search.faiss_index import Found, Index, recall_against_exact

if TYPE_CHECKING:
    import pandas as pd


# The best of this many passes is the time of a search: the others waited for something else.
_PASSES = 3


def effort_curve(
    index: Index, exact: Found, exact_seconds: float, queries: Float[np.ndarray, "q d"], k: int = 10
) -> pd.DataFrame:
    """A row per effort, doubling from the least to the most that can help: effort, recall, low, high, milliseconds, exact_milliseconds.

    `recall` is the share of the true `k` nearest (`exact`, found in `exact_seconds`) that `index` finds, in percent, with a 95 % interval over queries; the times are
    per query, of one call with all of them. The most is all lists (ivf), 1,024 candidates or the whole gallery (hnsw).
    Raises CalmrlError for an exact index or no queries.
    """
    import pandas as pd

    if index.kind == "flat":
        raise CalmrlError("a flat index is exact; there is nothing to measure", hint="use ivf or hnsw")
    if len(queries) == 0:
        raise CalmrlError("the recall of an index cannot be measured without queries")
    most = index.lists if index.kind == "ivf" else min(1024, len(index))
    least = 1 if index.kind == "ivf" else min(k, most)
    efforts = [*(least * 2**step for step in range(64) if least * 2**step < most), most]
    table = []
    for effort in tracked(efforts, "recall of the index", unit="efforts"):
        hits = 100 * recall_against_exact(index.search(queries, k, effort), exact)
        found = interval(hits, np.random.default_rng(0), top=100)
        seconds = _seconds(index, queries, k, effort)
        row = {"effort": effort, "recall": found.value, "low": found.low, "high": found.high}
        table.append({**row, "milliseconds": 1e3 * seconds, "exact_milliseconds": 1e3 * exact_seconds / len(queries)})
    return pd.DataFrame(table)


def _seconds(index: Index, queries: np.ndarray, k: int, effort: int | None) -> float:
    times = []
    for _ in range(_PASSES):
        begun = time.perf_counter()
        index.search(queries, k, effort)
        times.append(time.perf_counter() - begun)
    return min(times) / len(queries)
