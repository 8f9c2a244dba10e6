"""What an approximate index loses and what it saves: recall against the exact search along the effort, as a table and a figure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from calmrl_lab.errors import CalmrlError
from calmrl_lab.search import Index, build_index, recall_against_exact
from calmrl_lab.significance import interval

if TYPE_CHECKING:
    import pandas as pd

    from calmrl_lab.reporting.drawing import Figure

# The best of this many passes is the time of a search: the others waited for something else.
_PASSES = 3


def effort_curve(
    index: Index, vectors: Float[np.ndarray, "g d"], queries: Float[np.ndarray, "q d"], k: int = 10
) -> pd.DataFrame:
    """A row an effort, doubling from the least to the most that can help: effort, recall, low, high, milliseconds, exact_milliseconds.

    `recall` is the share of the true `k` nearest of `vectors` that `index` finds, in percent, with a 95 % interval over queries; the times are
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
    flat = build_index(vectors)
    exact, exact_seconds = flat.search(queries, k), _seconds(flat, queries, k, None)
    table = []
    for effort in efforts:
        hits = 100 * recall_against_exact(index.search(queries, k, effort), exact)
        found = interval(hits, np.random.default_rng(0), top=100)
        seconds = _seconds(index, queries, k, effort)
        row = {"effort": effort, "recall": found.value, "low": found.low, "high": found.high}
        table.append({**row, "milliseconds": 1e3 * seconds, "exact_milliseconds": 1e3 * exact_seconds})
    return pd.DataFrame(table)


def _seconds(index: Index, queries: np.ndarray, k: int, effort: int | None) -> float:
    times = []
    for _ in range(_PASSES):
        begun = time.perf_counter()
        index.search(queries, k, effort)
        times.append(time.perf_counter() - begun)
    return min(times) / len(queries)


def effort_figure(curve: pd.DataFrame, kind: str, items: int, queries: int, k: int = 10) -> Figure:
    """Recall against the exact search and time a query, along the effort."""
    from calmrl_lab.reporting.drawing import Drawing, Figure, canvas
    from calmrl_lab.reporting.palette import BLUE, GREY

    what = "lists visited" if kind == "ivf" else "candidates kept"

    def draw(narrow: bool) -> Drawing:
        made, axes = canvas(narrow, 5.0 if narrow else 2.6, columns=2)
        drawing = Drawing(made)
        recall, cost = axes.flat
        recall.fill_between(curve["effort"], curve["low"], curve["high"], color=BLUE.light, alpha=0.15, linewidth=0)
        recall.plot(curve["effort"], curve["recall"], color=BLUE.light)
        cost.plot(curve["effort"], curve["milliseconds"], color=BLUE.light, label=kind)
        cost.axhline(float(curve["exact_milliseconds"].iloc[0]), color=GREY.light, linestyle=(0, (4, 2)), label="exact")
        for row in curve.itertuples():
            words = (
                f"{row.effort} {what}: {row.recall:.1f} % [{row.low:.1f}, {row.high:.1f}], {row.milliseconds:.3g} ms a query"
            )
            for axis, value in ((recall, row.recall), (cost, row.milliseconds)):
                (mark,) = axis.plot([row.effort], [value], BLUE.marker, color=BLUE.light, markersize=4)
                drawing.label(mark, words)
        for axis in (recall, cost):
            axis.set_xscale("log", base=2)
            axis.set_xlabel(what)
            axis.xaxis.set_major_formatter("{x:.0f}")
        recall.set_ylim(0, 105)
        recall.set_ylabel(f"true {k} nearest found, %")
        cost.set_ylabel("time a query, ms")
        cost.set_ylim(bottom=0)
        cost.legend(loc="best")
        return drawing

    caption = (
        f"Share of the true {k} nearest of {items:,} items that the {kind} index finds (band: 95 % interval over {queries:,} queries), and the "
        "time a query takes beside that of exact search (dashed), measured when the index was made."
    )
    last = curve.iloc[-1]
    description = f"{last['recall']:.1f} % of the true neighbours at {last['effort']:.0f} {what}, {curve['recall'].iloc[0]:.1f} % at {curve['effort'].iloc[0]:.0f}"
    return Figure("recall_against_exact", f"Recall of the {kind} index", caption, description, draw)
