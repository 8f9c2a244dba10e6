"""The figure of docs/beyond.md: by how many points of Recall@1 each method is above CLIP, data by data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from calmrl_lab.evaluation.significance import Interval
from calmrl_lab.reporting.content.main_tables import signed, span
from calmrl_lab.reporting.output.axes import dot, legend, name_rows
from calmrl_lab.reporting.output.drawing import INK, Drawing, Figure, canvas
from calmrl_lab.reporting.output.palette import BLACK, BLUE, GREEN, OCHRE, PURPLE, VERMILLION, WINE

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = {
    "PPCA heads, closed form": OCHRE,
    "PPCA heads, likelihood ratio": GREEN,
    "CCA by pairs": VERMILLION,
    "CLIP on kernel features": BLUE,
    "kernel PPCA heads then CLIP, plus likelihood ratio": WINE,
    "recommended": PURPLE,
    "CLIP, nothing hidden (oracle)": BLACK,
}


def gains(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Rows are `tables` by their name (summary.csv of a report against CLIP), one mark per method."""
    names = list(tables)

    def draw(narrow: bool) -> Drawing:
        made, axes = canvas(narrow, 1.3 + 0.8 * len(names))
        axis, drawing = axes[0, 0], Drawing(made)
        axis.axvline(0, color=INK, linewidth=1)
        seen: set[str] = set()
        for y, name in enumerate(names):
            shown = [(label, ink) for label, ink in _SHOWN.items() if label in set(tables[name]["method"])]
            for place, (label, ink) in enumerate(shown):
                found = _gain(tables[name], label)
                offset = 0.12 * (place - (len(shown) - 1) / 2)
                words = f"{label}, {name}: {signed(found.value)} {span(found, sign=True)}"
                dot(drawing, axis, found, y + offset, ink, words, None if label in seen else label)
                seen.add(label)
        name_rows(axis, names)
        for edge in range(1, len(names)):
            axis.axhline(edge - 0.5, color="#e3e6ea", linewidth=0.8)
        axis.set_xlabel("difference to CLIP in mean Recall@1, points, with 95 % interval")
        legend(drawing, axis, narrow, 2)
        return drawing

    said = "; ".join(f"{name}: {_in_words(tables[name])}" for name in names)
    return Figure("beyond", "What PPCA heads gain over CLIP", "", f"Difference to CLIP in mean Recall@1, points. {said}.", draw)


def _in_words(table: pd.DataFrame) -> str:
    present: Sequence[str] = [label for label in _SHOWN if label in set(table["method"])]
    return ", ".join(f"{label} {signed(_gain(table, label).value)}" for label in present)


def _gain(table: pd.DataFrame, label: str) -> Interval:
    row = table[table["method"] == label].iloc[0]
    return Interval(float(row["delta_clip"]), float(row["delta_clip_low"]), float(row["delta_clip_high"]))
