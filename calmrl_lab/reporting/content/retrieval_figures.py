"""The figures on retrieval: all methods, paired differences, distance to the oracle (Figure 5), training curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calmrl_lab.evaluation.significance import Interval
from calmrl_lab.reporting.content.main_tables import arrow, probability, signed, span
from calmrl_lab.reporting.output.axes import dot, legend, name_rows, seeds_in_words, wrapped
from calmrl_lab.reporting.output.drawing import INK, Drawing, Figure, canvas
from calmrl_lab.reporting.output.palette import GREEN, GREY, VERMILLION, Ink
from calmrl_lab.reporting.results.collect import Method
from calmrl_lab.reporting.results.comparisons import Comparisons
from calmrl_lab.reporting.results.recalls import DEPTHS, Recalls
from calmrl_lab.runtime.console import listed


def overview(recalls: Recalls, inks: dict[str, Ink]) -> Figure:
    """All methods by mean Recall@1, best first, with chance."""
    ordered = sorted(recalls.methods, key=lambda found: found.means[1].value, reverse=True)
    chance = 100 * ordered[0].chance[1]

    def draw(narrow: bool) -> Drawing:
        made, axes = canvas(narrow, 0.8 + 0.3 * len(ordered))
        axis, drawing = axes[0, 0], Drawing(made)
        for y, result in enumerate(ordered):
            found = result.means[1].scaled(100)
            dot(drawing, axis, found, y, inks[result.method.name], f"{result.method.label}: {found.value:.1f} % {span(found)}")
        name_rows(axis, [wrapped(result.method.label, 22 if narrow else 60) for result in ordered])
        axis.axvline(chance, color=INK, linewidth=1, linestyle=(0, (2, 2)))
        axis.annotate("chance", (chance, -0.6), xytext=(3, -1), textcoords="offset points", va="top", fontsize=9)
        axis.set_xlim(left=0)
        axis.set_xlabel("Recall@1, %" if narrow else "Recall@1, %, mean over directions, with 95 % interval")
        return drawing

    best = ordered[0]
    description = "Mean Recall@1 with 95 % interval, best first: " + "; ".join(
        f"{r.method.label} {100 * r.means[1].value:.1f} %" for r in ordered
    )
    caption = (
        f"Recall@1 averaged over {len(recalls.directions)} directions ({_queries(recalls)} queries each, "
        f"{seeds_in_words([r.method for r in ordered])}). Dotted: a random order ({chance:.2f} %)."
    )
    title = f"All methods: {best.method.label} is highest"
    reading = (
        "Best method at the top; a mark is the mean share of queries whose first hit is right, its bar the 95 % interval. Bars may overlap "
        "although two methods differ: differences are paired, see the comparisons below."
    )
    return Figure("overview", title, caption, description, draw, _basis(recalls, [r.method for r in ordered]), reading)


def differences(compared: Comparisons, recalls: Recalls) -> Figure | None:
    """The comparisons that the words rest on, with zero; None if there are none."""
    told = compared.key_comparisons()
    if not told:
        return None

    def draw(narrow: bool) -> Drawing:
        made, axes = canvas(narrow, 0.9 + (0.46 if narrow else 0.3) * len(told))
        axis, drawing = axes[0, 0], Drawing(made)
        axis.axvline(0, color=INK, linewidth=1)
        for y, (method, other, found) in enumerate(told):
            points = found.scaled(100)
            ink = {1: GREEN, 0: GREY, -1: VERMILLION}[found.direction]._replace(marker="o")
            value = Interval(points.value, points.low, points.high)
            p = probability(found)
            words = f"{method.label} − {other.label}: {signed(points.value)} points {span(points, sign=True)}, p {p}"
            dot(drawing, axis, value, y, ink, words, hollow=found.verdict == 0)
        labels = [f"{method.label} − {other.label}" for method, other, _ in told]
        name_rows(axis, [wrapped(label, 24) if narrow else label for label in labels])
        axis.set_xlabel("points of Recall@1" if narrow else "difference in Recall@1, points")
        return drawing

    caption = (
        "Paired differences in Recall@1, averaged over the directions, with 95 % interval. Green: better, red: worse, grey: the interval "
        f"includes zero. Hollow: p is .05 or more after correction for {len(compared.pairs)} comparisons."
    )
    reading = (
        "Each row is one method minus another; right of zero the first is better. Where the bar excludes zero the difference is significant; a filled "
        "mark means that it still is after correction for all comparisons."
    )
    description = "Differences in mean Recall@1 in points: " + "; ".join(
        f"{method.label} minus {other.label} {signed(100 * found.value)}" for method, other, found in told
    )
    methods = list({method.name: method for method, other, _ in told for method in (method, other)}.values())
    return Figure(
        "differences", "Which method is better than which", caption, description, draw, _basis(recalls, methods), reading
    )


def oracle(recalls: Recalls, compared: Comparisons, inks: dict[str, Ink]) -> Figure | None:
    """Figure 5: observed only, calibrated, nothing hidden; None if none of these has runs."""
    parts = compared.roles
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
                dot(drawing, left, value, row + 0.3 * place, ink, words, result.method.label if row == 0 else None)
            for row, direction in enumerate(directions):
                value = result.directions[direction].recalls[1].scaled(100)
                words = f"{result.method.label}, {arrow(direction)}: {value.value:.1f} % {span(value)}"
                dot(drawing, right, value, row + 0.46 * place, ink, words)
        name_rows(left, [f"Recall@{depth}" for depth in DEPTHS])
        name_rows(right, [arrow(direction) for direction in directions])
        left.set_title("mean over directions")
        right.set_title("Recall@1 by direction")
        for axis in (left, right):
            axis.set_xlim(left=0)
            axis.set_xlabel("recall, %")
        legend(drawing, left, narrow, 3)
        return drawing

    shown = [
        *(["left out"] if parts.fair else []), *(["imputed"] if parts.calibrated else []), *(["not hidden at all"] if parts.oracle else [])
    ]  # fmt: skip
    caption = (
        f"Recall with modalities that training misses {listed(shown)} ({_queries(recalls)} queries per direction, "
        f"{seeds_in_words(chosen)}); bars: 95 % interval over groups of queries and seeds."
    )
    description = "Mean Recall@1: " + "; ".join(f"{r.method.label} {100 * r.means[1].value:.1f} %" for r in results)
    title = f"{listed(shown).capitalize()} (Figure 5)"
    reading = (
        "Farther right is better. The distance between the method without imputation and the oracle is what hiding modalities costs; a "
        "calibrated method that helps lies between the two, or to the right of the oracle."
    )
    return Figure("fig5_oracle", title, caption, description, draw, _basis(recalls, chosen), reading)


def training(methods: Sequence[Method], inks: dict[str, Ink]) -> Figure | None:
    """Validation score along the epochs, mean over seeds: whether everything was trained to its end; None without logs."""
    lines, bands = {}, {}
    for method in methods:
        runs = [[row["validation_mrr"] for row in run.metrics if "validation_mrr" in row] for run in method.runs]
        length = max((len(run) for run in runs), default=0)
        if length > 1:
            # A run that stopped early keeps its last score, so that the mean does not jump when it leaves.
            full = np.array([run + [run[-1]] * (length - len(run)) for run in runs if run])
            lines[method.name], bands[method.name] = full.mean(axis=0), (full.min(axis=0), full.max(axis=0))
    if not lines:
        return None
    shown = [method for method in methods if method.name in lines]

    def draw(narrow: bool) -> Drawing:
        made, axes = canvas(narrow, 3.0 + 0.2 * (len(shown) if narrow else -(-len(shown) // 3)))
        axis, drawing = axes[0, 0], Drawing(made)
        for method in shown:
            line, ink = lines[method.name], inks[method.name]
            axis.fill_between(range(len(line)), *bands[method.name], color=ink.light, alpha=0.12, linewidth=0)
            (curve,) = axis.plot(range(len(line)), line, color=ink.light, linewidth=1.5, label=method.label)
            drawing.label(curve, f"{method.label}: best {line.max():.3f} after epoch {int(line.argmax())}")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("epoch")
        axis.set_ylabel("validation MRR")
        legend(drawing, axis, narrow, 3)
        return drawing

    caption = (
        f"Mean reciprocal rank on the validation split after every epoch, mean over {seeds_in_words(shown)}, bands from the lowest to the highest "
        "seed; the epoch with the highest score is kept. A line that still rises at its end was stopped too early."
    )
    description = "Best validation MRR: " + "; ".join(f"{method.label} {lines[method.name].max():.3f}" for method in shown)
    basis = f"mean over {seeds_in_words(shown)}; bands: lowest to highest seed"
    reading = "Higher is better; each line is one method. The epoch at the top of a line is the one that is kept, so what counts is its height, not its end."
    return Figure("training", "Training", caption, description, draw, basis, reading)


def _basis(recalls: Recalls, methods: Sequence[Method]) -> str:
    count = len(recalls.directions)
    where = f"in each of {count} directions" if count > 1 else "queries"
    return f"n = {_queries(recalls)} {'queries ' if count > 1 else ''}{where}, {seeds_in_words(methods)}; bars: 95 % interval"


def _queries(recalls: Recalls) -> str:
    sizes = sorted({found.queries for result in recalls.methods for found in result.directions.values()})
    return f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
