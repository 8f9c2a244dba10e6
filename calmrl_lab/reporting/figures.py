"""The figures of a report: all methods, imputation error (Figure 3), anchor shift (Figure 4), the way to the oracle (Figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from calmrl_lab.reporting.comparisons import Comparisons
from calmrl_lab.reporting.contents import arrow, probability, signed, span
from calmrl_lab.reporting.drawing import BAND, INK, Drawing, Figure, canvas
from calmrl_lab.reporting.estimates import Estimate
from calmrl_lab.reporting.gather import Method
from calmrl_lab.reporting.imputations import ALL, Imputations
from calmrl_lab.reporting.palette import BLUE, GREEN, GREY, VERMILLION, Ink, imputer_ink
from calmrl_lab.reporting.recalls import DEPTHS, Recalls
from calmrl_lab.reporting.shifts import LARGEST, PatternShift, Shifts


def _dot(
    drawing: Drawing, axis: Any, found: Estimate, y: float, ink: Ink, words: str, label: str | None = None, hollow: bool = False
) -> None:
    """A mark with its interval, lying; hovering shows the numbers."""
    axis.plot([found.low, found.high], [y, y], color=ink.light, linewidth=1.8, solid_capstyle="butt", zorder=3)
    size = 9 if ink.marker == "*" else 5.5
    (mark,) = axis.plot(
        [found.value], [y], ink.marker, color=ink.light, markersize=size, zorder=4, label=label,
        markerfacecolor="#ffffff" if hollow else ink.light, markeredgecolor=ink.light,
    )  # fmt: skip
    drawing.label(mark, words)


def _rows(axis: Any, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)


def _legend(drawing: Drawing, axis: Any, narrow: bool, columns: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        drawing.canvas.legend(handles, labels, loc="outside upper left", ncols=1 if narrow else columns)


def _seeds(methods: Sequence[Method]) -> str:
    counts = sorted({len(method.seeds) for method in methods})
    return f"{counts[0]} seed{'s' if counts[0] != 1 else ''}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def _queries(recalls: Recalls) -> str:
    sizes = sorted({found.queries for result in recalls.methods for found in result.directions.values()})
    return f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def overview(recalls: Recalls, inks: dict[str, Ink]) -> Figure:
    """All methods by mean Recall@1, best first, with chance."""
    ordered = sorted(recalls.methods, key=lambda found: found.means[1].value, reverse=True)
    chance = 100 * ordered[0].chance[1]

    def draw(narrow: bool) -> Drawing:
        made, axes = canvas(narrow, 0.8 + 0.3 * len(ordered))
        axis, drawing = axes[0, 0], Drawing(made)
        for y, result in enumerate(ordered):
            found = result.means[1].scaled(100)
            _dot(drawing, axis, found, y, inks[result.method.name], f"{result.method.label}: {found.value:.1f} % {span(found)}")
        _rows(axis, [_wrapped(result.method.label, 22 if narrow else 60) for result in ordered])
        axis.axvline(chance, color=INK, linewidth=1, linestyle=(0, (2, 2)))
        axis.annotate("chance", (chance, -0.6), xytext=(3, -1), textcoords="offset points", va="top", fontsize=8)
        axis.set_xlim(left=0)
        axis.set_xlabel(
            "Recall@1, %, with 95 % interval" if narrow else "Recall@1, %, mean over directions, with 95 % interval"
        )
        return drawing

    best = ordered[0]
    description = "Mean Recall@1 with 95 % interval, best first: " + "; ".join(
        f"{r.method.label} {100 * r.means[1].value:.1f} %" for r in ordered
    )
    caption = (
        f"Recall@1 averaged over {len(recalls.directions)} directions ({_queries(recalls)} queries each, "
        f"{_seeds([r.method for r in ordered])}). Dotted: a random order ({chance:.2f} %)."
    )
    return Figure("overview", f"All methods: {best.method.label} is highest", caption, description, draw)


def differences(compared: Comparisons) -> Figure | None:
    """The comparisons that the words rest on, with zero; None if there are none."""
    told = compared.told()
    if not told:
        return None

    def draw(narrow: bool) -> Drawing:
        made, axes = canvas(narrow, 0.9 + (0.46 if narrow else 0.3) * len(told))
        axis, drawing = axes[0, 0], Drawing(made)
        axis.axvline(0, color=INK, linewidth=1)
        for y, (method, other, found) in enumerate(told):
            points = found.scaled(100)
            ink = {1: GREEN, 0: GREY, -1: VERMILLION}[found.verdict]._replace(marker="o")
            value = Estimate(points.value, points.low, points.high)
            p = probability(found.corrected)
            words = f"{method.label} − {other.label}: {signed(points.value)} points {span(points, sign=True)}, p {p}"
            _dot(drawing, axis, value, y, ink, words, hollow=found.verdict == 0)
        labels = [f"{method.label} − {other.label}" for method, other, _ in told]
        _rows(axis, [_wrapped(label, 24) if narrow else label for label in labels])
        axis.set_xlabel("difference in Recall@1, points")
        return drawing

    caption = (
        "Paired differences in Recall@1, averaged over the directions, with 95 % interval. Green: better, red: worse, hollow grey: "
        f"cannot be told, after correction for {len(compared.pairs)} comparisons."
    )
    description = "Differences in mean Recall@1 in points: " + "; ".join(
        f"{method.label} minus {other.label} {signed(100 * found.value)}" for method, other, found in told
    )
    return Figure("differences", "Who is better than whom", caption, description, draw)


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
            words = f"{row.imputer}, {row.modality}: {row.mse.value:.3f} {span(row.mse, 3)}, n = {row.items}"
            label = None if row.imputer in seen else row.imputer
            seen.add(row.imputer)
            _dot(drawing, axis, row.mse, modalities.index(row.modality) + offset, ink, words, label)
        _rows(axis, modalities)
        for edge in range(1, len(modalities)):
            axis.axhline(edge - 0.5, color="#e3e6ea", linewidth=0.8)
        axis.set_xlim(left=0)
        axis.set_xlabel("‖imputed − true‖² (unit-norm embeddings)")
        _legend(drawing, axis, narrow, 6)
        return drawing

    size = f"{items[0]}" if len(items) == 1 else f"{items[0]} to {items[-1]}"
    caption = (
        f"Squared distance between imputed and true embeddings by hidden modality, {found.split} split, on the heads of "
        f"{found.method.label}; n = {size} items a modality, {_seeds([found.method])}, all patterns together, bars: 95 % interval. "
        "0 is perfect; two unrelated unit vectors are 2 apart on average."
    )
    description = "Imputation error by modality: " + "; ".join(f"{r.modality} {r.imputer} {r.mse.value:.2f}" for r in rows)
    return Figure("fig3_imputation_mse", "Imputation error (Figure 3)", caption, description, draw)


def reliability(found: Imputations) -> Figure | None:
    """Whether an imputer knows how wrong it is: expected against made error, a mark a modality and pattern; None without expectations."""
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
        _legend(drawing, axis, narrow, 6)
        return drawing

    caption = (
        f"Squared error that each imputer expected and the one it made, a mark a hidden modality and pattern, {found.split} split, on the "
        f"heads of {found.method.label}. On the dotted line its own estimate can be trusted; above it, it is too sure of itself."
    )
    return Figure("reliability", "Does the imputer know how wrong it is?", caption, caption, draw)


def training(methods: Sequence[Method], inks: dict[str, Ink]) -> Figure | None:
    """Validation score along the epochs, mean over seeds: whether everything was trained to its end; None without logs."""
    lines = {}
    for method in methods:
        runs = [[row["validation_mrr"] for row in run.metrics if "validation_mrr" in row] for run in method.runs]
        length = max((len(run) for run in runs), default=0)
        if length > 1:
            # A run that stopped early keeps its last score, so that the mean does not jump when it leaves.
            lines[method.name] = np.mean([run + [run[-1]] * (length - len(run)) for run in runs if run], axis=0)
    if not lines:
        return None
    shown = [method for method in methods if method.name in lines]

    def draw(narrow: bool) -> Drawing:
        made, axes = canvas(narrow, 3.0 + 0.2 * (len(shown) if narrow else -(-len(shown) // 3)))
        axis, drawing = axes[0, 0], Drawing(made)
        for method in shown:
            line, ink = lines[method.name], inks[method.name]
            (curve,) = axis.plot(range(len(line)), line, color=ink.light, linewidth=1.5, label=method.label)
            drawing.label(curve, f"{method.label}: best {line.max():.3f} after epoch {int(line.argmax())}")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("epoch")
        axis.set_ylabel("validation MRR")
        _legend(drawing, axis, narrow, 3)
        return drawing

    caption = (
        f"Mean reciprocal rank on the validation split after every epoch, mean over {_seeds(shown)}; the epoch with the highest score is "
        "kept. A line that still rises at its end was stopped too early."
    )
    description = "Best validation MRR: " + "; ".join(f"{method.label} {lines[method.name].max():.3f}" for method in shown)
    return Figure("training", "Training", caption, description, draw)


def anchor_shift(found: Shifts) -> Figure:
    """Figure 4: anchor shift with and without calibration, within its proven bounds."""

    def draw(narrow: bool) -> Drawing:
        rows = found.patterns
        tall = 0.26 * len(rows) + 1.3
        made, axes = canvas(
            narrow, tall + 3.0 if narrow else max(3.4, tall + 0.4), columns=2, width_ratios=[1.15, 1], stacked=[tall, 2.4]
        )
        drawing = Drawing(made)
        _by_pattern(drawing, axes.flat[0], rows)
        _profile(drawing, axes.flat[1], found)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside upper left", ncols=1 if narrow else 3)
        return drawing

    whole = found.overall
    caption = (
        f"Distance between the anchor of all modalities and the anchor at hand, {found.split} split, on the heads of "
        f"{found.method.label} ({_seeds([found.method])}). Left: means by what is observed, bars: 95 % interval, grey: mean of the "
        f"proven lower to mean of the proven upper bound; n = {whole.items} items. Right: the same {found.profile.rows} shifts in order, "
        "averaged in equal steps, with the proven bounds of each step."
    )
    description = (
        f"Mean anchor shift {whole.observed.value:.2f} without and {whole.calibrated.value:.2f} with calibration; the proven bounds on "
        f"the shift without calibration average {whole.lower:.2f} and {whole.upper:.2f}."
    )
    return Figure("fig4_anchor_shift", "Anchor shift with and without calibration (Figure 4)", caption, description, draw)


def _by_pattern(drawing: Drawing, axis: Any, rows: Sequence[PatternShift]) -> None:
    for y, row in enumerate(rows):
        first = y == 0
        (bar,) = axis.barh(
            y, row.upper - row.lower, left=row.lower, height=0.62, color=BAND, label="proven bounds" if first else None
        )
        drawing.label(bar, f"{row.pattern}: proven bounds {row.lower:.3f} to {row.upper:.3f} (means)")
        for value, ink, name, hollow, offset in (
            (row.observed, BLUE, "without calibration", True, -0.13),
            (row.calibrated, VERMILLION, "with calibration", False, 0.13),
        ):
            words = f"{row.pattern}, {name}: {value.value:.3f} {span(value, 3)}, n = {row.items}"
            _dot(drawing, axis, value, y + offset, ink, words, name if first else None, hollow)
    _rows(axis, [row.pattern for row in rows])
    axis.set_xlim(0, min(LARGEST, 1.08 * max(max(row.upper, row.observed.high, row.calibrated.high) for row in rows)))
    axis.set_xlabel("anchor shift ‖u − v‖")
    axis.set_title("by observed modalities")


def _profile(drawing: Drawing, axis: Any, found: Shifts) -> None:
    profile = found.profile
    share = (np.arange(len(profile.observed)) + 0.5) / len(profile.observed) * 100
    axis.fill_between(share, profile.lower, profile.upper, color=BAND, linewidth=0)
    (before,) = axis.plot(share, profile.observed, color=BLUE.light)
    (after,) = axis.plot(share, profile.calibrated, color=VERMILLION.light)
    drawing.label(before, "without calibration, items in order of this shift")
    drawing.label(after, "with calibration, the same items")
    axis.set_xlim(0, 100)
    axis.set_ylim(0, min(LARGEST, 1.05 * float(max(profile.upper.max(), profile.calibrated.max()))))
    axis.set_xlabel("items in order of shift, %")
    axis.set_title("item by item")


def oracle(recalls: Recalls, compared: Comparisons, inks: dict[str, Ink]) -> Figure | None:
    """Figure 5: observed only, calibrated, nothing hidden; None if none of these has runs."""
    parts = compared.cast
    chosen = [m for m in (parts.fair, *parts.calibrated, parts.oracle) if m is not None]
    if len(chosen) < 2 or not recalls.directions:
        return None
    results = [recalls[method.name] for method in chosen]

    def draw(narrow: bool) -> Drawing:
        directions = recalls.directions
        tall = 0.27 * len(directions) + 0.9
        made, axes = canvas(
            narrow, tall + 2.7 if narrow else max(3.0, tall), columns=2, width_ratios=[1, 1.25], stacked=[1.6, tall]
        )
        drawing = Drawing(made)
        left, right = axes.flat
        for index, result in enumerate(results):
            ink = inks[result.method.name]
            place = (index - (len(results) - 1) / 2) / max(len(results) - 1, 1)
            for row, depth in enumerate(DEPTHS):
                value = result.means[depth].scaled(100)
                words = f"{result.method.label}, Recall@{depth}: {value.value:.1f} % {span(value)}"
                _dot(drawing, left, value, row + 0.3 * place, ink, words, result.method.label if row == 0 else None)
            for row, direction in enumerate(directions):
                value = result.directions[direction].recalls[1].scaled(100)
                words = f"{result.method.label}, {arrow(direction)}: {value.value:.1f} % {span(value)}"
                _dot(drawing, right, value, row + 0.46 * place, ink, words)
        _rows(left, [f"Recall@{depth}" for depth in DEPTHS])
        _rows(right, [arrow(direction) for direction in directions])
        left.set_title("mean over directions")
        right.set_title("Recall@1 by direction")
        for axis in (left, right):
            axis.set_xlim(left=0)
            axis.set_xlabel("recall, %")
        _legend(drawing, left, narrow, 3)
        return drawing

    caption = (
        f"Recall with hidden modalities left out, imputed, and with nothing hidden ({_queries(recalls)} queries a direction, "
        f"{_seeds(chosen)}); bars: 95 % interval over groups of queries and seeds."
    )
    description = "Mean Recall@1: " + "; ".join(f"{r.method.label} {100 * r.means[1].value:.1f} %" for r in results)
    return Figure("fig5_oracle", "Observed only, calibrated, oracle (Figure 5)", caption, description, draw)


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)) or text
