"""Parts that figures share: a mark with its interval, rows with names, the legend, the number of seeds in words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from calmrl_lab.evaluation.significance import Interval
from calmrl_lab.reporting.output.drawing import Drawing
from calmrl_lab.reporting.output.palette import Ink
from calmrl_lab.reporting.results.collect import Method


def dot(
    drawing: Drawing, axis: Any, found: Interval, y: float, ink: Ink, words: str, label: str | None = None, hollow: bool = False
) -> None:
    """A mark with its interval, lying; hovering shows the numbers."""
    axis.plot([found.low, found.high], [y, y], color=ink.light, linewidth=1.8, solid_capstyle="butt", zorder=3)
    size = 9 if ink.marker == "*" else 5.5
    (mark,) = axis.plot(
        [found.value], [y], ink.marker, color=ink.light, markersize=size, zorder=4, label=label,
        markerfacecolor="#ffffff" if hollow else ink.light, markeredgecolor=ink.light,
    )  # fmt: skip
    drawing.label(mark, words)


def name_rows(axis: Any, names: Sequence[str]) -> None:
    """Rows from top to bottom, with their names."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)


def legend(drawing: Drawing, axis: Any, narrow: bool, columns: int) -> None:
    """The marks of `axis` above the figure, under each other on a telephone."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        drawing.canvas.legend(handles, labels, loc="outside upper left", ncols=1 if narrow else columns)


def seeds_in_words(methods: Sequence[Method]) -> str:
    """For example "5 seeds", or "3 to 5 seeds" where methods differ."""
    counts = sorted({len(method.seeds) for method in methods})
    return f"{counts[0]} seed{'s' if counts[0] != 1 else ''}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def wrapped(text: str, width: int) -> str:
    """`text` in lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(text, width)) or text
