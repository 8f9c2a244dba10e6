"""Recall and speed of an approximate index against the exact search, by search effort."""

from __future__ import annotations

import math
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


# The best of this many passes is the time of a search: the others waited for something else. One that takes so many seconds has one pass.
_PASSES, _LONG = 3, 0.5
# An effort compares at most so many pairs of a query and a vector, or has so many queries: of more, every second, third, ...
_MOST_PAIRS, _FEWEST_QUERIES = 100_000_000, 100


def effort_curve(
    index: Index, exact: Found, exact_seconds: float, queries: Float[np.ndarray, "q d"], k: int = 10
) -> pd.DataFrame:
    """A row per effort, doubling from the least to the first that finds everything, or else the most there is: effort, recall, low, high,
    milliseconds, exact_milliseconds.

    `recall` is the share of the true `k` nearest (`exact`, found in `exact_seconds`) that `index` finds, in percent, with a 95 % interval over queries, of
    which a large ivf index is asked fewer with large efforts; the times are per query, of one call with all of them. The most is all lists (ivf), 1,024
    candidates or the whole gallery (hnsw).
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
        compared = len(index) * effort / most if index.kind == "ivf" else effort
        asked = slice(None, None, max(1, math.ceil(len(queries) / max(_FEWEST_QUERIES, _MOST_PAIRS / compared))))
        nearest, seconds = _timed(index, queries[asked], k, effort)
        hits = 100 * recall_against_exact(nearest, Found(exact.scores[asked], exact.positions[asked]))
        found = interval(hits, np.random.default_rng(0), top=100)
        row = {"effort": effort, "recall": found.value, "low": found.low, "high": found.high}
        table.append(
            {**row, "milliseconds": 1e3 * seconds / len(hits), "exact_milliseconds": 1e3 * exact_seconds / len(queries)}
        )
        if bool((hits == 100).all()):
            break
    return pd.DataFrame(table)


def _timed(index: Index, queries: np.ndarray, k: int, effort: int | None) -> tuple[Found, float]:
    """What a search finds, and the seconds that it takes."""
    times: list[float] = []
    while len(times) < _PASSES and sum(times) < _LONG:
        begun = time.perf_counter()
        found = index.search(queries, k, effort)
        times.append(time.perf_counter() - begun)
    return found, min(times)
