"""The tables of a report: recall by direction, the summary with differences, imputation error, anchor shift."""

from __future__ import annotations

from collections.abc import Mapping

from calmrl_lab.evaluation.significance import Comparison, Interval
from calmrl_lab.reporting.output.palette import Ink, imputer_ink
from calmrl_lab.reporting.output.table import Cell, Column, Table
from calmrl_lab.reporting.results.anchor_shifts import Shifts
from calmrl_lab.reporting.results.comparisons import Comparisons
from calmrl_lab.reporting.results.imputation_errors import ALL, Imputations
from calmrl_lab.reporting.results.recalls import DEPTHS, Direction, Recalls

FEATURES = "features as they come"
_BEST = "significantly better than every other method (without the oracle): the paired 95 % interval of the difference excludes zero."
RECALL_FIELDS = (
    "method", "query", "gallery", "recall_at_1", "low", "high", "recall_at_5", "recall_at_10", "median_rank", "seeds", "queries",
)  # fmt: skip
IMPUTATION_FIELDS = ("imputer", "modality", "pattern", "split", "mse", "low", "high", "mean_over_coordinates", "items")


def arrow(direction: Direction) -> str:
    return f"{direction[0]} → {direction[1]}"


def signed(value: float, digits: int = 1) -> str:
    """The number with its sign, a real minus, and no minus before zero."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def span(found: Interval | Comparison, digits: int = 1, sign: bool = False) -> str:
    """The interval as text."""
    if sign:
        return f"[{signed(found.low, digits)}, {signed(found.high, digits)}]"
    return f"[{found.low:.{digits}f}, {found.high:.{digits}f}]"


def probability(found: Comparison) -> str:
    """p after correction; "≤" where it is the smallest that the resampling can give."""
    p = found.corrected
    if p < 0.001:
        return "< .001"
    text = f"{p:.3f}".lstrip("0") if p < 1 else "1"
    return f"≤ {text}" if found.at_floor and p < 1 else text


def _estimate(found: Interval, digits: int = 1, bold: bool = False) -> Cell:
    return Cell(f"{found.value:.{digits}f}", span(found, digits), bold=bold, sort=round(found.value, 6))


def _swatch(ink: Ink | None) -> str:
    return f"var({ink.variable})" if ink else ""


def winner(recalls: Recalls, direction: Direction | None = None) -> str | None:
    """The method whose Recall@1 is above that of every other beyond the paired interval; the oracle does not compete."""
    scored = [m for m in recalls.methods if m.method.role != "oracle" and (direction is None or direction in m.directions)]
    if direction is None and not recalls.directions:
        return None
    if len(scored) < 2:
        return None

    def value(found: object) -> float:
        return (found.means if direction is None else found.directions[direction].recalls)[1].value  # type: ignore[attr-defined]

    best, *rest = sorted(scored, key=value, reverse=True)
    found = [recalls.compare(best.method.name, other.method.name, direction=direction) for other in rest]
    return best.method.name if all(one is not None and one.low > 0 for one in found) else None


def recall_table(recalls: Recalls, inks: dict[str, Ink]) -> Table:
    """One row per method and direction; recalls in percent."""
    rows: list[list[Cell]] = []
    records, rules = [], []
    best = {direction: winner(recalls, direction) for direction in recalls.all_directions}
    for direction in recalls.all_directions:
        rules.append(len(rows))
        for result in recalls.methods:
            found = result.directions.get(direction)
            if found is None:
                continue
            method = result.method
            percent = {depth: found.recalls[depth].scaled(100) for depth in DEPTHS}
            chance = (
                f"chance: {100 * found.chance[1]:.2f} % at 1, {100 * found.chance[10]:.1f} % at 10; gallery of {found.gallery}"
            )
            rows.append(
                [
                    Cell(
                        method.label,
                        swatch=_swatch(inks.get(method.name)),
                        title=f"{method.objective}, imputer {method.imputer}",
                    ),
                    Cell(direction[0]),
                    Cell(direction[1]),
                    Cell(
                        f"{percent[1].value:.1f}",
                        span(percent[1]),
                        bold=best[direction] == method.name,
                        sort=round(percent[1].value, 6),
                        title=chance,
                    ),
                    _estimate(percent[5]),
                    _estimate(percent[10]),
                    Cell(f"{found.median_rank.value:g}", span(found.median_rank, 0), sort=found.median_rank.value),
                    Cell(str(len(method.seeds))),
                    Cell(str(found.queries)),
                ]
            )
            records.append(
                {
                    "method": method.label, "query": direction[0], "gallery": direction[1], "recall_at_1": percent[1].value,
                    "low": percent[1].low, "high": percent[1].high, "recall_at_5": percent[5].value,
                    "recall_at_10": percent[10].value, "median_rank": found.median_rank.value, "seeds": len(method.seeds),
                    "queries": found.queries,
                }
            )  # fmt: skip
    heads = ("method", "query", "gallery", "R@1 %", "R@5 %", "R@10 %", "median rank", "seeds", "queries")
    columns = [Column(head, numeric=index > 2) for index, head in enumerate(heads)]
    notes = (
        "Brackets: 95 % interval, bootstrap over groups of queries and over seeds.",
        f"Bold: {_BEST}",
        "Ties count with the probability of a hit under a random order of the tied candidates.",
    )
    return Table("recall", "Recall by method and direction", columns, rows, notes, RECALL_FIELDS, records, rules)


def summary_table(recalls: Recalls, compared: Comparisons, inks: dict[str, Ink]) -> Table:
    """One row per method: recalls averaged over the directions, differences to the fair baseline and to CLIP."""
    parts = compared.roles
    references = [reference for reference in (parts.fair, parts.clip) if reference is not None]
    best = winner(recalls)
    rows, records = [], []
    for result in recalls.methods:
        method = result.method
        percent = {depth: result.means[depth].scaled(100) for depth in DEPTHS}
        record: dict[str, object] = {"method": method.label, "role": method.role, "scored_by": result.scored_by}
        record["seeds"] = len(method.seeds)
        row = [
            Cell(method.label, swatch=_swatch(inks.get(method.name)), title=f"{method.role}: {method.objective}, imputer {method.imputer}, scenario {method.scenario}"),
            Cell(result.scored_by),
        ]  # fmt: skip
        for depth in DEPTHS:
            row.append(_estimate(percent[depth], bold=depth == 1 and best == method.name))
            record |= {
                f"recall_at_{depth}": percent[depth].value,
                f"low_{depth}": percent[depth].low,
                f"high_{depth}": percent[depth].high,
            }
        for index, reference in enumerate(references):
            found = compared.of(method.name, reference.name)
            row += _difference(found, method.name == reference.name)
            name = ("fair", "clip")[index] if len(references) == 2 else ("fair" if reference is parts.fair else "clip")
            scaled = found.scaled(100) if found else None
            record |= {f"delta_{name}": scaled and scaled.value, f"delta_{name}_low": scaled and scaled.low}
            record |= {f"delta_{name}_high": scaled and scaled.high, f"p_{name}": found and found.corrected}
        rows.append(row)
        records.append(record)
    columns = [Column("method", numeric=False), Column("scored by", numeric=False)]
    columns += [Column(f"R@{depth} %", group="mean over directions") for depth in DEPTHS]
    for reference in references:
        columns += [Column("Δ R@1", group=f"against {reference.label}"), Column("p", group=f"against {reference.label}")]
    notes = [
        f"Means over {len(recalls.directions)} directions; brackets: 95 % interval, bootstrap over groups of queries and over seeds.",
        "Δ in points, paired by query and seed, p two-sided, corrected for all comparisons of this report (Holm); bold: the interval excludes zero and p is below .05.",
        f"Bold recall: {_BEST}",
        "Scored by: the similarity of a query and a candidate of another modality.",
    ]
    fields = tuple(records[0]) if records else ()
    return Table("summary", "Mean recall of every method", columns, rows, tuple(notes), fields, records)


def _difference(found: Comparison | None, itself: bool) -> list[Cell]:
    if found is None:
        return [Cell("reference" if itself else "–", sort=0.0), Cell("")]
    points = found.scaled(100)
    cell = Cell(signed(points.value), span(points, sign=True), bold=found.verdict != 0, sort=round(points.value, 6))
    return [cell, Cell(probability(found), sort=found.corrected)]


def imputation_table(found: Imputations) -> Table:
    """One row per imputer, modality, pattern and split."""
    rows: list[list[Cell]] = []
    dim = found.method.dim
    records, rules = [], []
    before: tuple[str, str] | None = None
    for row in found.rows:
        if (row.imputer, row.split) != before:
            rules.append(len(rows))
            before = (row.imputer, row.split)
        rows.append(
            [
                Cell(row.imputer, swatch=_swatch(imputer_ink(row.imputer))),
                Cell(row.modality),
                Cell(row.pattern),
                Cell(row.split),
                _estimate(row.mse, 3, bold=row.pattern == ALL and _lowest(found, row.imputer, row.modality, row.split)),
                Cell("–") if dim is None else Cell(f"{row.mse.value / dim:.5f}", sort=row.mse.value),
                Cell(str(row.items)),
            ]
        )
        records.append(
            {
                "imputer": row.imputer, "modality": row.modality, "pattern": row.pattern, "split": row.split, "mse": row.mse.value,
                "low": row.mse.low, "high": row.mse.high, "mean_over_coordinates": None if dim is None else row.mse.value / dim,
                "items": row.items,
            }
        )  # fmt: skip
    heads = ("imputer", "modality", "observed", "split", "‖imputed − true‖²", "mean over coordinates", "items")
    columns = [Column(head, numeric=index > 3) for index, head in enumerate(heads)]
    notes = (
        f"Squared distance between unit-norm embeddings (0 is perfect), all on the heads of {found.method.label}.",
        "Mean over coordinates: the same over the dimension of the embeddings, the unit that mean-squared-error functions print.",
        "Brackets: 95 % interval, bootstrap over groups of items and over seeds; “all”: over all patterns.",
        "Bold: lowest over all patterns, with an interval below those of all others.",
    )
    return Table(
        "imputation_mse",
        "Imputation error of entries whose real embedding is known",
        columns,
        rows,
        notes,
        IMPUTATION_FIELDS,
        records,
        rules,
    )


def _lowest(found: Imputations, imputer: str, modality: str, split: str) -> bool:
    rows = [row for row in found.rows if (row.modality, row.pattern, row.split) == (modality, ALL, split)]
    own = next(row for row in rows if row.imputer == imputer)
    return len(rows) > 1 and all(own.mse.high < row.mse.low for row in rows if row is not own)


def shift_table(found: Shifts) -> Table:
    """One row per pattern of observed modalities."""
    rows, records = [], []
    for row in found.patterns:
        rows.append(
            [
                Cell(row.pattern),
                _estimate(row.observed, 3),
                _estimate(row.calibrated, 3),
                Cell(signed(row.change.value, 3), span(row.change, 3, sign=True), sort=row.change.value, bold=not row.change.low <= 0 <= row.change.high),
                _estimate(row.improved.scaled(100), 0),
                Cell(f"{row.lower:.3f} to {row.upper:.3f}", sort=row.lower),
                Cell(str(row.items)),
            ]
        )  # fmt: skip
        records.append(
            {
                "pattern": row.pattern, "shift_observed": row.observed.value, "observed_low": row.observed.low,
                "observed_high": row.observed.high, "shift_calibrated": row.calibrated.value, "calibrated_low": row.calibrated.low,
                "calibrated_high": row.calibrated.high, "change": row.change.value, "change_low": row.change.low,
                "change_high": row.change.high, "improved": row.improved.value, "lower_bound": row.lower, "upper_bound": row.upper,
                "items": row.items,
            }
        )  # fmt: skip
    heads = ("observed", "without calibration", "with calibration", "change", "items improved %", "proven bounds", "items")
    columns = [Column(head, numeric=index > 0) for index, head in enumerate(heads)]
    notes = (
        f"Distance between the anchor of all modalities and the anchor of the observed ones (0 to √2), on the heads of {found.method.label}, {found.split} split.",
        "Proven bounds: means over the items of the lower and upper bound on the shift without calibration.",
        "Bold: the 95 % interval of the paired change excludes zero.",
    )
    return Table("anchor_shift", "Anchor shift by what is observed", columns, rows, notes, tuple(records[0]), records)


def direction_table(recalls: Recalls, features: Mapping[Direction, float]) -> Table:
    """Recall@1 in percent: a row per direction, a column per method; intervals on hover and in the long table.

    `features` are the recalls (fractions) of the cosine of the features as they come; if there are any they have the first column.
    """
    best = {direction: winner(recalls, direction) for direction in recalls.all_directions}
    rows = []
    for direction in recalls.all_directions:
        row = [Cell(arrow(direction))]
        if features:
            reference = features.get(direction)
            row.append(Cell("–") if reference is None else Cell(f"{100 * reference:.1f}", sort=round(100 * reference, 6)))
        for result in recalls.methods:
            found = result.directions.get(direction)
            if found is None:
                row.append(Cell("–"))
                continue
            percent = found.recalls[1].scaled(100)
            title = f"{result.method.label}, {arrow(direction)}: {percent.value:.1f} % {span(percent)}"
            row.append(
                Cell(
                    f"{percent.value:.1f}",
                    bold=best[direction] == result.method.name,
                    title=title,
                    sort=round(percent.value, 6),
                )
            )
        rows.append(row)
    plain = [FEATURES] if features else []
    columns = [
        Column("direction", numeric=False),
        *map(Column, plain),
        *(Column(result.method.label) for result in recalls.methods),
    ]
    notes = [f"Bold: {_BEST}"]
    if features:
        notes.append(
            f"{FEATURES.capitalize()}: the cosine of the features before anything is trained; – where their dimensions differ."
        )
    fields = ("direction", *plain, *(result.method.label for result in recalls.methods))
    records = [
        {
            "direction": arrow(d),
            **dict.fromkeys(plain, 100 * features[d] if d in features else None),
            **{r.method.label: 100 * r.directions[d].recalls[1].value if d in r.directions else None for r in recalls.methods},
        }
        for d in recalls.all_directions
    ]
    return Table(
        "by_direction", "Recall@1 in percent by direction (query → gallery)", columns, rows, tuple(notes), fields, records
    )
