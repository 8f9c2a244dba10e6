"""Retrieval with modalities missing at test time: Recall@1 by the share that is hidden, and the gain of joining modalities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from calmrl_lab.evaluation.score_rows import hits
from calmrl_lab.evaluation.significance import Comparison, Interval, Resamples, Sums, corrected_family, estimate, paired
from calmrl_lab.reporting.content.main_tables import probability, signed, span
from calmrl_lab.reporting.output.axes import seeds_in_words
from calmrl_lab.reporting.output.drawing import BAND, Drawing, Figure, panels
from calmrl_lab.reporting.output.palette import Ink
from calmrl_lab.reporting.output.table import Cell, Column, Table
from calmrl_lab.reporting.results.collect import Gathered, Method
from calmrl_lab.scorers._names import family, is_single

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FIELDS = ("method", "side", "scorer", "gaps_filled", "scenario", "recall_at_1", "low", "high", "seeds", "queries")
# Queries of one modality among items that miss some, and queries that are items that miss some.
_SIDES = {"gallery": "missing in the gallery", "query": "missing in the query"}


@dataclass(frozen=True)
class Point:
    """Recall@1 of one method under one scenario, averaged over the query modalities (or the gallery modalities)."""

    method: Method
    side: str
    scorer: str
    calibrated: bool
    scenario: str
    recall: Interval
    queries: int

    @property
    def rate(self) -> float | None:
        """The share that is hidden at random; None for scenarios that are no rate."""
        if self.scenario == "full":
            return 0.0
        name, _, rate = self.scenario.partition(":")
        try:
            return float(rate) if name == "random" else None
        except ValueError:
            return None


@dataclass(frozen=True)
class Gain:
    """All modalities of an item together minus the best single one, nothing hidden, averaged over the query modalities; p corrected over
    all gains of the report."""

    method: Method
    side: str
    scorer: str
    calibrated: bool
    joint: Interval
    single: Interval
    difference: Comparison


@dataclass(frozen=True)
class Robustness:
    points: tuple[Point, ...]
    gains: tuple[Gain, ...]


def robustness(gathered: Gathered) -> Robustness | None:
    """Curves and gains of the methods whose runs have them; None if none has."""
    found = [(method, method.frame("curves")) for method in gathered.methods if method.frame("curves")]
    if not found:
        return None
    groups = sorted({str(g) for _, runs in found for _, frame in runs for g in frame["group"].unique()})
    resamples = Resamples(groups)
    points, gains = [], []
    for method, runs in found:
        keys, sums = _sums(runs, groups)
        points += _points(method, keys, sums, resamples)
        gains += _gains(method, keys, sums, resamples)
    points, gains = _distinct(points, _values_of_points), _distinct(gains, _values_of_gains)
    corrected = corrected_family({place: gain.difference for place, gain in enumerate(gains)})
    return Robustness(tuple(points), tuple(replace(gain, difference=corrected[place]) for place, gain in enumerate(gains)))


Shown = TypeVar("Shown", Point, Gain)


def _distinct(found: Sequence[Shown], values: Callable[[Sequence[Shown]], list[float]]) -> list[Shown]:
    """Without what imputing gaps did not change (no gap was there, or nothing imputes): those lines are there already."""
    lines: dict[tuple[str, str, str, bool], list[Shown]] = {}
    for one in found:
        lines.setdefault((one.method.name, one.side, one.scorer, one.calibrated), []).append(one)
    repeated = set()
    for (method, side, scorer, calibrated), own in lines.items():
        as_observed = lines.get((method, side, scorer, False))
        if calibrated and as_observed is not None and values(own) == values(as_observed):
            repeated.add((method, side, scorer, calibrated))
    return [one for one in found if (one.method.name, one.side, one.scorer, one.calibrated) not in repeated]


def _values_of_points(points: Sequence[Point]) -> list[float]:
    return [point.recall.value for point in sorted(points, key=lambda point: point.scenario)]


def _values_of_gains(gains: Sequence[Gain]) -> list[float]:
    return [value for gain in gains for value in (gain.joint.value, gain.single.value)]


# side, scorer, calibrated, scenario, and the single modality of the query or of the candidates.
Key = tuple[str, str, bool, str, str]


def _sums(runs: Sequence[tuple[int, pd.DataFrame]], groups: Sequence[str]) -> tuple[list[Key], Sums]:
    tables = [_by_group(frame) for _, frame in runs]
    keys = sorted({key[:5] for table in tables for key in table.index})
    key_at = {key: index for index, key in enumerate(keys)}
    group_at = {name: index for index, name in enumerate(groups)}
    shape = (len(runs), len(groups), len(keys))
    totals, counts = np.zeros(shape), np.zeros(shape)
    for index, table in enumerate(tables):
        columns = np.array([key_at[key[:5]] for key in table.index])
        rows = np.array([group_at[str(key[5])] for key in table.index])
        totals[index, rows, columns] = table["sum"].to_numpy(float)
        counts[index, rows, columns] = table["count"].to_numpy(float)
    return keys, Sums(tuple(seed for seed, _ in runs), tuple(groups), totals, counts)


def _by_group(frame: pd.DataFrame) -> pd.DataFrame:
    single = frame["query"].where(frame["side"] == "gallery", frame["gallery"]).astype(str)
    columns = [frame[name] for name in ("side", "scorer", "calibrated", "gallery_scenario")]
    return (
        frame.assign(hit=hits(frame, 1))
        .groupby([*columns, single.rename("single"), frame["group"]], observed=True)["hit"]
        .agg(["sum", "count"])
    )


def _points(method: Method, keys: Sequence[Key], sums: Sums, resamples: Resamples) -> list[Point]:
    value, replicates = resamples.means(sums)
    places: dict[tuple[str, str, bool, str], list[int]] = {}
    for index, (side, scorer, calibrated, scenario, _) in enumerate(keys):
        if not is_single(scorer):
            places.setdefault((side, scorer, bool(calibrated), scenario), []).append(index)
    queries = sums.counts.sum(axis=1).mean(axis=0)
    return [
        Point(
            method,
            *key,
            estimate(value[at].mean(), replicates[:, at].mean(axis=1), max(map(sums.units, at))),
            round(float(queries[at].mean())),
        )
        for key, at in places.items()
    ]


def _gains(method: Method, keys: Sequence[Key], sums: Sums, resamples: Resamples) -> list[Gain]:
    """The best single modality is chosen by its mean on the same queries, which favours it a little."""
    means, replicates = resamples.means(sums)

    def recall(columns: Sequence[int]) -> Interval:
        at = list(columns)
        return estimate(means[at].mean(), replicates[:, at].mean(axis=1), max(map(sums.units, at)))

    full = [index for index, key in enumerate(keys) if key[3] == "full"]
    best: dict[tuple[str, str, str], int] = {}
    for index in full:
        side, scorer, calibrated, _, asking = keys[index]
        if is_single(scorer) and not calibrated:
            known = best.get((side, asking, family(scorer)))
            best[side, asking, family(scorer)] = index if known is None or means[index] > means[known] else known
    joint: dict[tuple[str, str, bool], list[int]] = {}
    for index in full:
        side, scorer, calibrated, _, asking = keys[index]
        if not is_single(scorer) and (side, asking, family(scorer)) in best:
            joint.setdefault((side, scorer, bool(calibrated)), []).append(index)
    gains = []
    for (side, scorer, calibrated), columns in joint.items():
        others = [best[side, keys[index][4], family(scorer)] for index in columns]
        difference = paired(sums, columns, sums, others)
        if difference is not None:
            gains.append(Gain(method, side, scorer, calibrated, recall(columns), recall(others), difference))
    return gains


def curve_figure(found: Robustness, inks: dict[str, Ink]) -> Figure | None:
    """Recall@1 along the share of hidden modalities, with and without filling; None without at least two rates."""
    scorer, others = _shown_scorers(found)
    points = [p for p in found.points if p.scorer == others.get(p.method.name, scorer) and p.rate is not None]
    sides = [side for side in _SIDES if any(point.side == side for point in points)]
    if len({point.rate for point in points}) < 2:
        return None
    methods = list({point.method.name: point.method for point in points}.values())

    def draw(narrow: bool) -> Drawing:
        beside = 1 if narrow else 2
        rows = -(-len(methods) // beside)
        made, axes = panels(narrow, 0.75 + (1.25 if narrow else 1.45) * rows, rows, beside * len(sides))
        drawing = Drawing(made)
        blocks = [axes[place // beside, len(sides) * (place % beside) :][: len(sides)] for place in range(rows * beside)]
        for own, method in zip(blocks, methods, strict=False):
            for axis, side in zip(own, sides, strict=True):
                here = [point for point in points if point.side == side]
                _context(axis, [point for point in here if point.method.name != method.name and not point.calibrated])
                for calibrated in (False, True):
                    mine = [p for p in here if (p.method.name, p.calibrated) == (method.name, calibrated)]
                    _line(drawing, axis, mine, inks[method.name])
                axis.annotate(
                    f"in the {side}",
                    (1, 1),
                    xytext=(-2, -2),
                    xycoords="axes fraction",
                    textcoords="offset points",
                    ha="right",
                    va="top",
                )
            own[0].set_title(method.label, color=inks[method.name].light)
        for unused in blocks[len(methods) :]:
            for axis in unused:
                axis.set_axis_off()
        axes[0, 0].set_ylim(0, 105 * max(point.recall.high for point in points))
        for axis in blocks[len(methods) - 1][:1] if narrow else axes[-1, :1]:
            axis.set_xlabel("modalities hidden, %", loc="left")
        axes[0, 0].set_ylabel("Recall@1, %")
        return drawing

    labels = {point.method.name: point.method.label for point in points}
    apart = "".join(f" ({labels[name]}: {own})" for name, own in others.items() if name in labels)
    caption = (
        f"Recall@1 when modalities of the items are hidden at random at test time (at least one stays; masks are nested), scorer "
        f"{scorer}{apart}, mean over the modalities on the other side, {points[0].queries} queries each; bands: 95 % interval."
    )
    reading = (
        f"Each method has a pair of panels, left with modalities {_SIDES[sides[0]]}, right {_SIDES[sides[-1]]}; grey lines are the other methods. "
        "The flatter the line, the less is lost; dashed: missing entries are imputed before scoring, which helps where it lies above the solid line."
        if len(sides) > 1
        else f"Each method has a panel, with modalities {_SIDES[sides[0]]}; grey lines are the other methods. The flatter the line, the less is lost; dashed: "
        "missing entries are imputed before scoring, which helps where it lies above the solid line."
    )
    description = "Recall@1 at the highest rate of hiding: " + "; ".join(
        f"{point.method.label}{', gaps imputed' if point.calibrated else ''} {100 * point.recall.value:.1f} %"
        for point in points
        if point.side == sides[0] and point.rate == max(p.rate or 0 for p in points)
    )
    return Figure("missing_curves", "Modalities missing at test time", caption, description, draw, _basis(points), reading)


def _basis(points: Sequence[Point]) -> str:
    methods = list({point.method.name: point.method for point in points}.values())
    return f"n = {points[0].queries} queries, {seeds_in_words(methods)}; bands: 95 % interval"


def _shown_scorers(found: Robustness) -> tuple[str, dict[str, str]]:
    """The scorer that most methods have, and by method that of the others: runs that compare otherwise than by embeddings."""
    by_method: dict[str, list[str]] = {}
    for point in found.points:
        by_method.setdefault(point.method.name, []).append(point.scorer)
    counts = Counter(scorer for own in by_method.values() for scorer in dict.fromkeys(own))
    scorer = max(counts, key=lambda name: counts[name], default="")
    return scorer, {name: own[0] for name, own in by_method.items() if scorer not in own}


def _context(axis: Axes, points: Sequence[Point]) -> None:
    """The other methods in the background, without names."""
    for name in dict.fromkeys(point.method.name for point in points):
        own = sorted((point for point in points if point.method.name == name), key=lambda point: point.rate or 0.0)
        axis.plot([100 * (p.rate or 0.0) for p in own], [100 * p.recall.value for p in own], color=BAND, linewidth=1, zorder=1)


def _line(drawing: Drawing, axis: Axes, points: Sequence[Point], ink: Ink) -> None:
    ordered = sorted(points, key=lambda point: point.rate or 0.0)
    if not ordered:
        return
    rate = [100 * (point.rate or 0.0) for point in ordered]
    value = [point.recall.scaled(100) for point in ordered]
    name = f"{ordered[0].method.label}, gaps filled" if ordered[0].calibrated else ordered[0].method.label
    axis.fill_between(rate, [v.low for v in value], [v.high for v in value], color=ink.light, alpha=0.12, linewidth=0)
    style = (0, (4, 2)) if ordered[0].calibrated else "-"
    axis.plot(rate, [v.value for v in value], color=ink.light, linestyle=style)
    for x, v in zip(rate, value, strict=True):
        (mark,) = axis.plot([x], [v.value], ink.marker, color=ink.light, markersize=4)
        drawing.label(mark, f"{name}, {x:.0f} % hidden: {v.value:.1f} % {span(v)}")


def curve_table(found: Robustness, inks: dict[str, Ink]) -> Table:
    """A row per method, side, scorer and filling; a column per scenario."""
    scenarios = list(dict.fromkeys(point.scenario for point in found.points))
    # Rates first, in order; then the modalities that are dropped.
    scenarios.sort(key=lambda name: _order(name))
    lines: dict[tuple[str, str, str, bool], dict[str, Point]] = {}
    for point in found.points:
        lines.setdefault((point.side, point.scorer, point.method.name, point.calibrated), {})[point.scenario] = point
    rows: list[list[Cell]] = []
    rules, before = [], ("", "")
    for (side, scorer, name, calibrated), by_scenario in sorted(lines.items(), key=lambda pair: pair[0][:2]):
        if (side, scorer) != before:
            rules.append(len(rows))
            before = (side, scorer)
        label = next(iter(by_scenario.values())).method.label
        rows.append(
            [
                Cell(f"{label}, gaps filled" if calibrated else label, swatch=f"var({inks[name].variable})"),
                Cell(side),
                Cell(scorer),
                *(_point(by_scenario.get(scenario)) for scenario in scenarios),
            ]
        )
    columns = [Column("method", numeric=False), Column("missing in", numeric=False), Column("scorer", numeric=False)]
    columns += [Column(scenario, group="Recall@1 %") for scenario in scenarios]
    records = [
        {
            "method": p.method.label, "side": p.side, "scorer": p.scorer, "gaps_filled": int(p.calibrated), "scenario": p.scenario,
            "recall_at_1": 100 * p.recall.value, "low": 100 * p.recall.low, "high": 100 * p.recall.high, "seeds": len(p.method.seeds),
            "queries": p.queries,
        }
        for p in found.points
    ]  # fmt: skip
    notes = (
        "random: share of modalities hidden at random, masks nested; drop: this modality hidden everywhere. 95 % intervals on hover and in the CSV file.",
    )
    return Table(
        "missing_curves", "Recall@1 with modalities missing at test time", columns, rows, notes, FIELDS, records, rules
    )


def _order(scenario: str) -> tuple[int, float, str]:
    name, _, rate = scenario.partition(":")
    if scenario == "full":
        return (0, 0.0, "")
    return (1, float(rate), "") if name == "random" and rate.replace(".", "", 1).isdigit() else (2, 0.0, scenario)


def _point(point: Point | None) -> Cell:
    if point is None:
        return Cell("–")
    value = point.recall.scaled(100)
    return Cell(f"{value.value:.1f}", title=f"95 % interval {span(value)}, {point.queries} queries", sort=round(value.value, 6))


def gain_table(found: Robustness, inks: dict[str, Ink]) -> Table:
    """What all modalities of an item together gain over the best single one; often less than nothing."""
    rows = []
    for gain in found.gains:
        points = gain.difference.scaled(100)
        rows.append(
            [
                Cell(
                    f"{gain.method.label}, gaps filled" if gain.calibrated else gain.method.label,
                    swatch=f"var({inks[gain.method.name].variable})",
                ),
                Cell("many to one" if gain.side == "query" else "one to many"),
                Cell(gain.scorer),
                *(Cell(f"{100 * e.value:.1f}", span(e.scaled(100)), sort=e.value) for e in (gain.joint, gain.single)),
                Cell(
                    signed(points.value),
                    span(points, sign=True),
                    bold=gain.difference.verdict != 0,
                    sort=round(points.value, 6),
                ),
                Cell(probability(gain.difference), sort=gain.difference.corrected),
            ]
        )
    heads = ("method", "direction", "scorer", "joint R@1 %", "best single R@1 %", "gain", "p")
    columns = [Column(head, numeric=index > 2) for index, head in enumerate(heads)]
    notes = (
        "Gain in points with its paired 95 % interval, p corrected for all gains of this report (Holm); bold where p is below .05. The best single modality is "
        "chosen on the same queries, which favours it slightly. Nothing is hidden.",
    )
    return Table("aggregation_gain", "All modalities together against the best single one", columns, rows, notes)
