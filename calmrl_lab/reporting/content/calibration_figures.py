"""The figures on calibration: imputation error (Figure 3), predicted against real error, anchor shift (Figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from calmrl_lab.reporting.content.main_tables import span
from calmrl_lab.reporting.output.axes import dot, legend, name_rows, seeds_in_words
from calmrl_lab.reporting.output.drawing import BAND, INK, Drawing, Figure, canvas
from calmrl_lab.reporting.output.palette import BLUE, VERMILLION, imputer_ink
from calmrl_lab.reporting.results.anchor_shifts import LARGEST, PatternShift, Shifts
from calmrl_lab.reporting.results.imputation_errors import ALL, Imputations

# Bars on either side of no change at all.
_BINS = 15


def imputation_error(found: Imputations) -> Figure:
    """Figure 3: error of imputed embeddings by modality and imputer."""
    rows = [row for row in found.rows if row.split == found.split and row.pattern == ALL]
    modalities = list(dict.fromkeys(row.modality for row in rows))
    imputers = list(dict.fromkeys(row.imputer for row in rows))
    items = sorted({row.items for row in rows})

    def draw(narrow: bool) -> Drawing:
        made, axes = canvas(
            narrow, 1.3 + len(modalities) * (0.14 * len(imputers) + 0.2) + (0.16 * len(imputers) if narrow else 0)
        )
        axis, drawing = axes[0, 0], Drawing(made)
        seen: set[str] = set()
        for row in rows:
            ink = imputer_ink(row.imputer)
            offset = (imputers.index(row.imputer) - (len(imputers) - 1) / 2) * 0.72 / max(len(imputers), 1)
            words = f"{row.imputer}, {row.modality}: {row.mse.value:.3f} {span(row.mse, 3)}{_over_coordinates(row.mse.value, found)}, n = {row.items}"
            label = None if row.imputer in seen else row.imputer
            seen.add(row.imputer)
            dot(drawing, axis, row.mse, modalities.index(row.modality) + offset, ink, words, label)
        name_rows(axis, modalities)
        for edge in range(1, len(modalities)):
            axis.axhline(edge - 0.5, color="#e3e6ea", linewidth=0.8)
        axis.set_xlim(left=0)
        axis.set_xlabel("‖imputed − true‖² (unit-norm embeddings)")
        legend(drawing, axis, narrow, 6)
        return drawing

    size = f"{items[0]}" if len(items) == 1 else f"{items[0]} to {items[-1]}"
    caption = (
        f"Squared distance between imputed and true embeddings by hidden modality, {found.split} split, on the heads of "
        f"{found.method.label}; n = {size} items per modality, {seeds_in_words([found.method])}, all patterns together, bars: 95 % interval. "
        f"0 is perfect; two unrelated unit vectors are 2 apart on average.{_mean_over_coordinates(found)}"
    )
    description = "Imputation error by modality: " + "; ".join(f"{r.modality} {r.imputer} {r.mse.value:.2f}" for r in rows)
    basis = f"n = {size} items per modality, {seeds_in_words([found.method])}; bars: 95 % interval"
    reading = (
        "A row is a hidden modality, a mark is an imputer; farther left is better. An imputer is useful where its error is smaller than that of the "
        "mean, which is the same for every item."
    )
    return Figure("fig3_imputation_mse", "Imputation error (Figure 3)", caption, description, draw, basis, reading)


def _over_coordinates(value: float, found: Imputations) -> str:
    return "" if found.method.dim is None else f", {value / found.method.dim:.5f} a coordinate"


def _mean_over_coordinates(found: Imputations) -> str:
    """The errors over all gaps in the unit of the paper's figure; empty where the dimension is not known."""
    if found.method.dim is None:
        return ""
    parts = [
        f"{name} {value.value / found.method.dim:.5f}" for (name, split), value in found.overall.items() if split == found.split
    ]
    return f" Mean over the {found.method.dim} coordinates instead of their sum: {', '.join(parts)}."


def reliability(found: Imputations) -> Figure | None:
    """Predicted against real error of imputers, a mark per modality and pattern; None if no imputer predicts errors."""
    pairs = found.expected
    if not pairs:
        return None
    imputers = list(dict.fromkeys(pair.imputer for pair in pairs))
    top = 1.08 * max(max(pair.expected, pair.made) for pair in pairs)

    def draw(narrow: bool) -> Drawing:
        made, axes = canvas(narrow, 3.4)
        axis, drawing = axes[0, 0], Drawing(made)
        axis.plot([0, top], [0, top], color=INK, linewidth=1, linestyle=(0, (2, 2)))
        for name in imputers:
            ink = imputer_ink(name)
            label: str | None = name
            for pair in (pair for pair in pairs if pair.imputer == name):
                (mark,) = axis.plot(
                    [pair.expected], [pair.made], ink.marker, color=ink.light, markersize=5, alpha=0.85, label=label
                )
                drawing.label(
                    mark, f"{name}, {pair.modality} from {pair.pattern}: expected {pair.expected:.3f}, made {pair.made:.3f}"
                )
                label = None
        axis.set_xlim(0, top)
        axis.set_ylim(0, top)
        axis.set_xlabel("expected squared error")
        axis.set_ylabel("made squared error")
        legend(drawing, axis, narrow, 6)
        return drawing

    caption = (
        f"Predicted and real squared error of each imputer, a mark per hidden modality and pattern, {found.split} split, on the "
        f"heads of {found.method.label}. On the dotted line the prediction is right; above it, the real error is larger."
    )
    gaps = sorted({sum(pair.gaps for pair in pairs if pair.imputer == name) for name in imputers})
    basis = f"n = {' to '.join(map(str, dict.fromkeys((gaps[0], gaps[-1]))))} gaps per imputer, {seeds_in_words([found.method])}; means of a modality and pattern"
    reading = (
        "On the dotted line the real error equals the predicted one; above it the real error is larger, below it smaller. Marks farther right are gaps "
        "that are harder to impute."
    )
    return Figure("reliability", "Predicted and real errors of imputation", caption, caption, draw, basis, reading)


def anchor_shift(found: Shifts) -> Figure:
    """Figure 4: mean anchor shift with and without calibration, and the change of every case."""

    def draw(narrow: bool) -> Drawing:
        rows = found.patterns
        tall = 0.26 * len(rows) + 1.3
        made, axes = canvas(
            narrow, tall + 3.0 if narrow else max(3.4, tall + 0.4), columns=2, width_ratios=[1.15, 1], stacked=[tall, 2.4]
        )
        drawing = Drawing(made)
        _by_pattern(drawing, axes.flat[0], rows)
        _changes(drawing, axes.flat[1], found)
        pairs = [axis.get_legend_handles_labels() for axis in axes.flat]
        handles, labels = ([*pairs[0][side], *pairs[1][side]] for side in (0, 1))
        made.legend(handles, labels, loc="outside upper left", ncols=1 if narrow else 3)
        return drawing

    whole = found.overall
    caption = (
        f"Distance between the anchor of all modalities and the anchor of the observed ones, {found.split} split, on the heads of "
        f"{found.method.label} ({seeds_in_words([found.method])}). Left: means by what is observed, bars: 95 % interval, grey: mean of the "
        "proven lower to mean of the proven upper bound, which hold for the shift without calibration only; "
        f"n = {whole.items} items. Right: shift with calibration minus shift without, case by case ({len(found.changes)} cases: an item, what "
        f"it shows, a seed); {100 * found.harmed:.1f} % of them are farther away with calibration"
        f"{f', {found.unchanged} are as they were' if found.unchanged else ''}."
    )
    description = (
        f"Mean anchor shift {whole.observed.value:.2f} without and {whole.calibrated.value:.2f} with calibration; the proven bounds on "
        f"the shift without calibration average {whole.lower:.2f} and {whole.upper:.2f}; {100 * found.harmed:.1f} % of the cases are harmed."
    )
    title = "Anchor shift with and without calibration (Figure 4)"
    basis = f"n = {whole.items} items, {seeds_in_words([found.method])}; bars: 95 % interval"
    reading = (
        "Farther left is better: the anchor stays closer to that of the complete item. Where the filled mark is left of the hollow one, calibration "
        "helped this pattern; in the right panel, bars right of zero are cases in which it did harm."
    )
    return Figure("fig4_anchor_shift", title, caption, description, draw, basis, reading)


def _by_pattern(drawing: Drawing, axis: Any, rows: Sequence[PatternShift]) -> None:
    for y, row in enumerate(rows):
        first = y == 0
        # The bounds are those of the shift without calibration, and lie behind that one alone.
        label = "proven bounds without calibration" if first else None
        (bar,) = axis.barh(y - 0.13, row.upper - row.lower, left=row.lower, height=0.24, color=BAND, label=label)
        drawing.label(bar, f"{row.pattern}: proven bounds {row.lower:.3f} to {row.upper:.3f} (means), without calibration")
        for value, ink, name, hollow, offset in (
            (row.observed, BLUE, "without calibration", True, -0.13),
            (row.calibrated, VERMILLION, "with calibration", False, 0.13),
        ):
            words = f"{row.pattern}, {name}: {value.value:.3f} {span(value, 3)}, n = {row.items}"
            dot(drawing, axis, value, y + offset, ink, words, name if first else None, hollow)
    name_rows(axis, [row.pattern for row in rows])
    axis.set_xlim(0, min(LARGEST, 1.08 * max(max(row.upper, row.observed.high, row.calibrated.high) for row in rows)))
    axis.set_xlabel("anchor shift ‖u − v‖")
    axis.set_title("by observed modalities")


def _changes(drawing: Drawing, axis: Any, found: Shifts) -> None:
    """Histogram of the change of every case, harmed ones in a colour of their own, those without any change in a bar of their own."""
    reach = max(float(np.abs(found.changes).max()), 1e-6)
    edges = np.linspace(-reach, reach, 2 * _BINS + 1)
    counts, _ = np.histogram(found.changes[found.changes != 0], edges)
    width = edges[1] - edges[0]
    if found.unchanged:
        (bar,) = axis.bar(0.0, found.unchanged, width=width / 2, color=BAND, label="unchanged")
        drawing.label(bar, f"unchanged: {found.unchanged} cases")
    for harmed, ink, name in (
        (False, BLUE, "closer with calibration"),
        (True, VERMILLION, "farther with calibration (harmed)"),
    ):
        label: str | None = name
        for left, count in zip(edges[:-1], counts, strict=True):
            # Edges are symmetric, so that no bar holds cases of both kinds.
            if count and (left >= -width / 2) == harmed:
                (bar,) = axis.bar(left, count, width=width, align="edge", color=ink.light, label=label)
                drawing.label(bar, f"{name}: {count} cases change by {left:+.3f} to {left + width:+.3f}")
                label = None
    axis.axvline(0.0, color=INK, linewidth=1)
    axis.set_xlim(-1.02 * reach, 1.02 * reach)
    axis.set_xlabel("shift with calibration − shift without")
    axis.set_ylabel("cases")
    axis.set_title("case by case")
