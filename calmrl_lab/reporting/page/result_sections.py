"""The sections of the page that show results: tables, charts, examples, as HTML."""

from __future__ import annotations

from html import escape
from typing import Any

from calmrl_lab.reporting.content.examples import Case, Cases
from calmrl_lab.reporting.content.published import gain_in_words, same_data
from calmrl_lab.reporting.output.drawing import Figure
from calmrl_lab.reporting.output.thumbnails import as_html
from calmrl_lab.reporting.page.context import Findings, Section
from calmrl_lab.reporting.results.imputation_errors import Imputations

# What a stand-in cannot show is said beside its numbers.
_LIMITS = {
    "openmoji": "Drawings, spoken names and short written names of emoji: a stand-in that anyone can run. It says nothing about video, scene sounds or long captions.",
    "digits": "Six views of handwritten digits: a stand-in with unequal dimensions. It says nothing about video, sound or text.",
}


def result_sections(found: Findings, environment: Any) -> list[Section]:
    """Everything that was found, in the order of the questions; what no run has is left out."""
    return [
        *_results(found),
        *_calibration(found),
        *_optional(found),
        *_other_data(found),
        *_error_analysis(found, environment),
        *_published(found),
    ]


def _results(found: Findings) -> list[Section]:
    if "summary" not in found.tables:
        return []
    drawn = chart(found.figures["differences"]) if "differences" in found.figures else ""
    limits = _LIMITS.get(str(found.gathered.store.get("dataset")), "")
    sections = [Section("results", "Results", found.tables["summary"].to_html() + drawn, limits)]
    if "fig5_oracle" in found.figures:
        figure = found.figures["fig5_oracle"]
        heading = (
            "Calibrated training between baseline and oracle"
            if found.compared.roles.oracle
            else "Calibrated and observed-only training"
        )
        sections.append(
            Section("oracle", heading, chart(figure), short="Oracle" if found.compared.roles.oracle else "Calibrated")
        )
    recall = found.tables["recall"]
    full = details("Every method in every direction", recall.to_html(), f"{len(recall.rows)} rows")
    sections.append(Section("recall", "By direction", found.tables["by_direction"].to_html() + full, short="Directions"))
    return sections


def _calibration(found: Findings) -> list[Section]:
    sections = []
    if found.imputations is not None:
        table = found.tables["imputation_mse"]
        body = chart(found.figures["fig3_imputation_mse"]) + _predicted(found, found.imputations)
        body += details("By pattern and split", table.to_html(), f"{len(table.rows)} rows")
        sections.append(Section("imputation", "Imputation error", body, short="Imputation"))
    if found.shifts is not None:
        body = chart(found.figures["fig4_anchor_shift"])
        if found.shifts.broken:
            body += f'<p class="failed-run">{found.shifts.broken} shifts lie outside their proven bounds: something is wrong with these numbers.</p>'
        body += details("By pattern", found.tables["anchor_shift"].to_html())
        sections.append(Section("anchors", "Anchor shift", body, short="Anchors"))
    return sections


def _optional(found: Findings) -> list[Section]:
    """What only some runs were evaluated for: matching, modalities missing at test time, classification."""
    sections = []
    if "rerank" in found.tables:
        sections.append(Section("rerank", "Re-ranking by matching", found.tables["rerank"].to_html(), short="Re-rank"))
    if "missing_curves" in found.tables:
        drawn = chart(found.figures["missing_curves"]) if "missing_curves" in found.figures else ""
        table = found.tables["missing_curves"]
        body = drawn + details("Every scenario and scorer", table.to_html(), f"{len(table.rows)} rows")
        body += _folded(found, "aggregation_gain")
        body += _folded(found, "published_missing") + _folded(found, "published_joining")
        sections.append(Section("missing", "Modalities missing at test time", body, short="Missing"))
    if "classification" in found.tables:
        single = found.tables["classification_by_modality"]
        body = found.tables["classification"].to_html()
        if "classification_differences" in found.tables:
            body += found.tables["classification_differences"].to_html()
        body += details("By classifier and modality", single.to_html(), f"{len(single.rows)} rows")
        published = [line for line in found.footnotes if "Table 2" in line]
        body += f'<ul class="notes">{"".join(f"<li>{escape(line)}</li>" for line in published)}</ul>'
        body += _folded(found, "published_classification")
        sections.append(Section("classification", "Classification", body, short="Classes"))
    return sections


def _other_data(found: Findings) -> list[Section]:
    body = ""
    for other in found.others:
        limits = _LIMITS.get(str(other.gathered.store.get("dataset")), "")
        body += f"<h3>{escape(other.gathered.title)}</h3><p>{escape(limits)}</p>" + "".join(t.to_html() for t in other.tables)
    return [Section("other-data", "On other data", body, short="Other data")] if body else []


def _error_analysis(found: Findings, environment: Any) -> list[Section]:
    parts = [_folded(found, name) for name in ("worst_shifts", "harmed_fillings")]
    examples = ""
    if found.cases is not None and any(picked for _, _, picked in found.cases.kinds):
        examples = environment.get_template("examples.html.j2").render(**_examples(found, found.cases))
    body = examples + "".join(parts)
    return [Section("inside", "Examples", body, short="Examples")] if body else []


def _examples(found: Findings, cases: Cases) -> dict[str, Any]:
    query, gallery = cases.direction
    titles = {
        "won": f"Right item ranked first only by {cases.labels[0]}",
        "lost": f"Right item ranked first only by {cases.labels[1]}",
        "far off for both": "Right item not among the first ten of either method",
    }
    return {
        "words": (
            f"Queries by {query}, gallery of {gallery}, seed {cases.run.seed}. Queries are drawn at random within each group; the right "
            "item has a green frame."
        ),
        "queries": cases.queries,
        "kinds": [
            {"title": titles[kind], "count": count, "cases": [_case(found, cases, case) for case in picked]}
            for kind, count, picked in cases.kinds
        ],
    }


def _case(found: Findings, cases: Cases, case: Case) -> dict[str, Any]:
    rows = []
    for label, run, rank in zip(cases.labels, (cases.run, cases.other), (case.rank, case.other_rank), strict=True):
        hits = found.first.get(run.name, {}).get(case.item, [])
        shown = [{"face": _face(found, hit), "name": found.items.name(hit), "right": hit == case.item} for hit in hits]
        rows.append({"label": label, "rank": f"{rank:g}", "hits": shown})
    return {"face": _face(found, case.item), "name": found.items.name(case.item), "rows": rows}


def _face(found: Findings, item: str) -> Any:
    from markupsafe import Markup

    return Markup(as_html(found.items.picture(item)))


def _predicted(found: Findings, errors: Imputations) -> str:
    lines = []
    for name in errors.imputers:
        means = errors.mean_expectation(name)
        if means is not None:
            lines.append(f"{name} predicted {means[0]:.2f}, real {means[1]:.2f} ({_reliability_in_words(*means)})")
    if not lines:
        return ""
    return f"<p>{escape('Mean squared error: ' + '; '.join(lines) + '.')}</p>" + chart(found.figures["reliability"])


def _reliability_in_words(predicted: float, real: float) -> str:
    ratio = real / predicted if predicted > 0 else float("inf")
    if ratio > 1.1:
        return "its predictions are too small"
    return "its predictions are too large" if ratio < 0.9 else "its predictions are right on average"


def _published(found: Findings) -> list[Section]:
    if "published" not in found.tables:
        return []
    lines = [line for line in (gain_in_words(found.compared), *found.footnotes) if line]
    notes = "".join(f"<li>{escape(line)}</li>" for line in lines)
    body = found.tables["published"].to_html() + (f'<ul class="notes">{notes}</ul>' if notes else "")
    body += _folded(found, "published_retrieval")
    intro = (
        "The same data; here only heads on cached features were trained, so a difference in level may come from the rest of the network."
        if same_data(found.gathered)
        else "The published numbers are on other data. Compare the order of the systems only, not the numbers themselves."
    )
    return [Section("published", "Comparison with the paper", body, intro, "Paper")]


def _folded(found: Findings, name: str) -> str:
    """A table in a fold that is closed at first; empty if it was not made."""
    table = found.tables.get(name)
    return details(table.caption, table.to_html(), f"{len(table.rows)} rows") if table else ""


def chart(figure: Figure) -> str:
    """The figure for wide and for narrow windows, with its caption."""
    return (
        f'<figure class="chart" id="{figure.name}">{figure.inline()}{figure.inline(narrow=True)}{figcaption(figure)}</figure>'
    )


def figcaption(figure: Figure) -> str:
    """How to read the figure, then what it shows."""
    reading = f'<p class="reading"><b>How to read it.</b> {escape(figure.reading)}</p>' if figure.reading else ""
    return f"<figcaption>{reading}<p>{escape(figure.caption)}</p></figcaption>"


def details(summary: str, body: str, small: str = "") -> str:
    """A fold: `summary` and a small remark stay visible, `body` opens."""
    aside = f" <small>{escape(small)}</small>" if small else ""
    return f"<details><summary>{escape(summary)}{aside}</summary>{body}</details>"
