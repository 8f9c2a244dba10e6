"""The figure of approximate search: recall against the exact search over the search effort."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from calmrl_lab.reporting.output.drawing import Figure


def effort_figure(curve: pd.DataFrame, kind: str, items: int, queries: int, k: int = 10) -> Figure:
    """Recall against the exact search and time per query, along the effort."""
    from calmrl_lab.reporting.output.drawing import Drawing, Figure, canvas
    from calmrl_lab.reporting.output.palette import BLUE, GREY

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
                f"{row.effort} {what}: {row.recall:.1f} % [{row.low:.1f}, {row.high:.1f}], {row.milliseconds:.3g} ms per query"
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
        cost.set_ylabel("time per query, ms")
        cost.set_ylim(bottom=0)
        cost.legend(loc="best")
        return drawing

    caption = (
        f"Share of the true {k} nearest of {items:,} items that the {kind} index finds (band: 95 % interval over {queries:,} queries), and the "
        "time per query beside that of exact search (dashed), measured when the index was made."
    )
    last = curve.iloc[-1]
    description = f"{last['recall']:.1f} % of the true neighbours at {last['effort']:.0f} {what}, {curve['recall'].iloc[0]:.1f} % at {curve['effort'].iloc[0]:.0f}"
    return Figure("recall_against_exact", f"Recall of the {kind} index", caption, description, draw)
