"""Everything a report knows -> one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from calmrl_lab import __version__
from calmrl_lab.reporting.comparisons import Comparisons
from calmrl_lab.reporting.contents import signed, span
from calmrl_lab.reporting.drawing import Figure
from calmrl_lab.reporting.gather import Gathered, Method
from calmrl_lab.reporting.imputations import Imputations
from calmrl_lab.reporting.inside import Case, Cases
from calmrl_lab.reporting.narrative import Narrative
from calmrl_lab.reporting.neighbours import Items
from calmrl_lab.reporting.palette import INKS, Ink
from calmrl_lab.reporting.recalls import Recalls
from calmrl_lab.reporting.shifts import Shifts
from calmrl_lab.reporting.tables import Table

_TEMPLATES = Path(__file__).with_name("templates")
# What a stand-in cannot show is said beside its numbers.
_LIMITS = {
    "openmoji": "Drawings, spoken names and short written names of emoji: a stand-in that anyone can run. It says nothing about video, scene sounds or long captions.",
    "digits": "Six views of handwritten digits: a stand-in with unequal dimensions. It says nothing about video, sound or text.",
}
_REASONS = (
    ("absent", "absent", "absent by nature"),
    ("failed", "failed", "failed"),
    ("not extracted", "skipped", "not extracted"),
)


@dataclass(frozen=True)
class Section:
    """One block of the page; `body` is HTML already."""

    id: str
    title: str
    body: str
    intro: str = ""
    short: str = ""
    """The word in the line of contents; default: the title."""


@dataclass(frozen=True)
class Findings:
    """What the page is made of."""

    gathered: Gathered
    recalls: Recalls
    compared: Comparisons
    imputations: Imputations | None
    shifts: Shifts | None
    narrative: Narrative
    inks: dict[str, Ink]
    tables: dict[str, Table]
    figures: dict[str, Figure]
    footnotes: Sequence[str] = ()
    cases: Cases | None = None
    first: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Run name -> query item -> the items it finds first; empty if the store is not there."""
    items: Items = field(default_factory=Items)


def page(found: Findings, files: Sequence[str]) -> str:
    """The HTML page; `files` are the paths beside it, linked at its end."""
    environment = _environment()
    sections = [
        *_results(found),
        *_calibration(found),
        *_optional(found),
        *_inside(found, environment),
        *_published(found),
        Section(
            "protocol",
            "How it was measured",
            environment.get_template("protocol.html.j2").render(protocol=protocol(found)),
            short="Method",
        ),
        Section("data", "The data", environment.get_template("data.html.j2").render(**_data(found)), short="Data"),
        Section(
            "runs",
            "Runs and settings",
            _trained(found) + environment.get_template("runs.html.j2").render(**_runs(found)),
            short="Runs",
        ),
        Section("files", "Files", _files(files), "The same tables and figures for a paper, a spreadsheet or a script."),
    ]
    return environment.get_template("page.html.j2").render(
        gathered=found.gathered,
        narrative=found.narrative,
        sections=[Section(s.id, s.title, _safe(s.body), s.intro, s.short or s.title) for s in sections],
        overview=_safe(_overview(found)),
        tiles=_tiles(found),
        css=_safe(_css()),
        script=_safe((_TEMPLATES / "sort.js").read_text(encoding="utf-8")),
        version=__version__,
        eyebrow=_eyebrow(found),
        problem_counts=_problem_counts(found.gathered),
    )


def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader

    return Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def _safe(html: str) -> Any:
    from markupsafe import Markup

    return Markup(html)


def _css() -> str:
    from jinja2 import Template

    light = "\n".join(f"  {ink.variable}: {ink.light};" for ink in INKS)
    dark = "\n".join(f"    {ink.variable}: {ink.dark};" for ink in INKS)
    return Template((_TEMPLATES / "page.css").read_text(encoding="utf-8")).render(light_inks=light, dark_inks=dark)


def _eyebrow(found: Findings) -> str:
    store, recalls = found.gathered.store, found.recalls
    parts = [str(store.get("dataset") or found.gathered.folder.name)]
    parts += [f"{store['items']:,} items"] if isinstance(store.get("items"), int) else []
    parts += [f"{len(store.get('modalities') or [])} modalities"] if store.get("modalities") else []
    runs = sum(len(result.method.runs) for result in recalls.methods)
    return " · ".join([*parts, f"{len(recalls.methods)} methods", f"{runs} runs"])


def _problem_counts(gathered: Gathered) -> str:
    kinds: dict[str, int] = {}
    for problem in gathered.problems:
        kinds[problem.kind] = kinds.get(problem.kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _tiles(found: Findings) -> list[dict[str, str]]:
    """The three or four numbers one would be asked for first."""
    parts, tiles = found.compared.cast, []
    main = parts.calibrated[0] if parts.calibrated else None
    if main and main.runs and found.recalls.directions:
        value = found.recalls[main.name].means[1].scaled(100)
        colour = f"var({found.inks[main.name].variable})"
        tiles.append(
            {"value": f"{value.value:.1f} %", "detail": span(value), "what": f"mean Recall@1 of {main.label}", "colour": colour}
        )
        for reference in (parts.fair, parts.clip, parts.oracle):
            against = found.compared.of(main.name, reference.name) if reference else None
            if reference is None or against is None:
                continue
            points = against.scaled(100)
            tiles.append(
                {
                    "value": signed(points.value),
                    "detail": span(points, sign=True),
                    "what": f"points of Recall@1 against {reference.label}",
                    "colour": f"var({found.inks[reference.name].variable})",
                }
            )
    return tiles


def _overview(found: Findings) -> str:
    """All methods at a glance, beside the words; one drawing serves all widths."""
    figure = found.figures.get("overview")
    if figure is None:
        return ""
    caption = f"<figcaption>{_escape(figure.caption)}</figcaption>"
    return f'<figure class="overview" id="{figure.name}">{figure.inline(narrow=True)}{caption}</figure>'


def _chart(figure: Figure) -> str:
    return (
        f'<figure class="chart" id="{figure.name}">{figure.inline()}{figure.inline(narrow=True)}'
        f"<figcaption>{_escape(figure.caption)}</figcaption></figure>"
    )


def _escape(text: str) -> str:
    from html import escape

    return escape(text)


def _details(summary: str, body: str, small: str = "") -> str:
    aside = f" <small>{_escape(small)}</small>" if small else ""
    return f"<details><summary>{_escape(summary)}{aside}</summary>{body}</details>"


def _results(found: Findings) -> list[Section]:
    if "summary" not in found.tables:
        return []
    chart = _chart(found.figures["differences"]) if "differences" in found.figures else ""
    limits = _LIMITS.get(str(found.gathered.store.get("dataset")), "")
    sections = [Section("results", "Results", found.tables["summary"].to_html() + chart, limits)]
    if "fig5_oracle" in found.figures:
        figure = found.figures["fig5_oracle"]
        sections.append(Section("oracle", "Observed only, calibrated, nothing hidden", _chart(figure), short="Oracle"))
    recall = found.tables["recall"]
    full = _details("Every method in every direction", recall.to_html(), f"{len(recall.rows)} rows")
    sections.append(Section("recall", "By direction", found.tables["by_direction"].to_html() + full, short="Directions"))
    return sections


def _calibration(found: Findings) -> list[Section]:
    sections = []
    if found.imputations is not None:
        table = found.tables["imputation_mse"]
        body = _chart(found.figures["fig3_imputation_mse"]) + _predicted(found, found.imputations)
        body += _details("By pattern and split", table.to_html(), f"{len(table.rows)} rows")
        sections.append(Section("imputation", "How good the fillings are", body, short="Imputation"))
    if found.shifts is not None:
        body = _chart(found.figures["fig4_anchor_shift"])
        if found.shifts.broken:
            body += f'<p class="failed-run">{found.shifts.broken} shifts lie outside their proven bounds: something is wrong with these numbers.</p>'
        body += _details("By pattern", found.tables["anchor_shift"].to_html())
        sections.append(Section("anchors", "Where the anchors go", body, short="Anchors"))
    return sections


def _optional(found: Findings) -> list[Section]:
    """What only some runs were asked for: modalities missing at test time, classification."""
    sections = []
    if "missing_curves" in found.tables:
        chart = _chart(found.figures["missing_curves"]) if "missing_curves" in found.figures else ""
        table = found.tables["missing_curves"]
        body = chart + _details("Every scenario and scorer", table.to_html(), f"{len(table.rows)} rows")
        if "aggregation_gain" in found.tables:
            body += found.tables["aggregation_gain"].to_html()
        sections.append(Section("missing", "Modalities missing at test time", body, short="Missing"))
    if "classification" in found.tables:
        single = found.tables["classification_by_modality"]
        body = found.tables["classification"].to_html()
        body += _details("By classifier and modality", single.to_html(), f"{len(single.rows)} rows")
        published = [line for line in found.footnotes if "Table 2" in line]
        body += f'<ul class="notes">{"".join(f"<li>{_escape(line)}</li>" for line in published)}</ul>'
        sections.append(Section("classification", "Classification", body, short="Classes"))
    return sections


def _inside(found: Findings, environment: Any) -> list[Section]:
    parts = [found.tables[name].to_html() for name in ("worst_shifts", "harmed_fillings") if name in found.tables]
    examples = ""
    if found.cases is not None and any(picked for _, _, picked in found.cases.kinds):
        examples = environment.get_template("examples.html.j2").render(**_examples(found, found.cases))
    body = examples + "".join(parts)
    return [Section("inside", "Looking inside", body, short="Examples")] if body else []


def _examples(found: Findings, cases: Cases) -> dict[str, Any]:
    query, gallery = cases.direction
    titles = {
        "won": f"Found first only by {cases.labels[0]}",
        "lost": f"Found first only by {cases.labels[1]}",
        "far off for both": "Not among the first ten of either",
    }
    return {
        "words": (
            f"Queries by {query}, gallery of {gallery}, seed {cases.run.seed}. Drawn at random within each group, not picked; the item "
            "sought is framed in green."
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
        shown = [{"face": found.items.face(hit), "name": found.items.name(hit), "right": hit == case.item} for hit in hits]
        rows.append({"label": label, "rank": f"{rank:g}", "hits": shown})
    return {"face": found.items.face(case.item), "name": found.items.name(case.item), "rows": rows}


def _predicted(found: Findings, errors: Imputations) -> str:
    lines = []
    for name in errors.imputers:
        means = errors.mean_expectation(name)
        if means is not None:
            lines.append(f"{name} expected {means[0]:.2f} and made {means[1]:.2f} ({_honesty(*means)})")
    if not lines:
        return ""
    return f"<p>{_escape('Mean squared error: ' + '; '.join(lines) + '.')}</p>" + _chart(found.figures["reliability"])


def _honesty(expected: float, made: float) -> str:
    ratio = made / expected if expected > 0 else float("inf")
    if ratio > 1.1:
        return "it is too sure of itself"
    return "it is too cautious" if ratio < 0.9 else "its own estimate can be trusted on average"


def _published(found: Findings) -> list[Section]:
    if "published" not in found.tables:
        return []
    notes = "".join(f"<li>{_escape(line)}</li>" for line in found.footnotes)
    body = found.tables["published"].to_html() + (f'<ul class="notes">{notes}</ul>' if notes else "")
    intro = "The published numbers are on other data. Only the order of the systems can be compared, never the level."
    return [Section("published", "Beside the paper", body, intro, "Paper")]


def protocol(found: Findings) -> list[tuple[str, str]]:
    """What was evaluated and how, as pairs of name and value."""
    gathered, recalls = found.gathered, found.recalls
    rows = [("dataset", str(gathered.store.get("dataset") or "not recorded")), ("split", gathered.split)]
    results = [found for result in recalls.methods for found in result.directions.values()]
    if results:
        queries, galleries = sorted({r.queries for r in results}), sorted({r.gallery for r in results})
        rows += [
            (
                "directions",
                f"{len(recalls.directions)}: every query modality against every other as gallery"
                if len(recalls.directions) > 2
                else ", ".join(f"{a} → {b}" for a, b in recalls.directions),
            ),
            ("queries a direction", _range(queries)),
            ("gallery", f"{_range(galleries)} candidates, nothing hidden from it; the query's own item is the positive"),
            ("resampling unit", f"{len(recalls.resamples.groups)} groups of items (near duplicates share a group), and seeds"),
        ]
        chance = next(iter(recalls.methods)).chance
        rows.append(("chance level", ", ".join(f"Recall@{depth} {100 * value:.2f} %" for depth, value in chance.items())))
    rows += [
        ("hidden in training", ", ".join(dict.fromkeys(method.scenario for method in gathered.methods)) or "unknown"),
        ("similarity", f"{_scorer(gathered)} of the projected embeddings, no re-ranking, no dual softmax"),
        ("ties", "a hit within k counts with its probability under a random order of the tied candidates"),
        ("median rank", "median over queries and seeds of the expected rank, best positive"),
        ("seeds", ", ".join(map(str, sorted({seed for method in gathered.methods for seed in method.seeds}))) or "none"),
        ("intervals", f"95 %, percentile bootstrap, {recalls.resamples.replicates} resamples of groups and of seeds"),
        ("differences", "paired by query and seed; variance clustered by groups and by seeds, Student's t (one seed: bootstrap and sign flips)"),
        ("p-values", f"two-sided, corrected by Holm's rule for {len(found.compared.pairs)} comparisons"),
        ("model selection", "on the validation split only"),
    ]  # fmt: skip
    return rows


def _scorer(gathered: Gathered) -> str:
    frame = next((run.scores for method in gathered.methods for run in method.runs if "scorer" in run.scores.columns), None)
    return "cosine" if frame is None else str(frame["scorer"].iloc[0])


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _data(found: Findings) -> dict[str, Any]:
    store = found.gathered.store
    splits = store.get("splits") or {}
    rows = [
        ("dataset", store.get("dataset")),
        ("items", f"{store['items']:,}" if isinstance(store.get("items"), int) else None),
        ("splits", ", ".join(f"{name} {count}" for name, count in splits.items())),
        ("licence", store.get("licence")),
        ("attribution", store.get("attribution")),
        ("store", store.get("path")),
        ("digest", store.get("digest")),
    ]
    total = int(store.get("items") or 0)
    missing = store.get("missing") or {}
    modalities = [_modality(store, name, missing[name], total) for name in missing] if total else []
    patterns = dict(list((store.get("patterns") or {}).items())[:24])
    names = list(store.get("modalities") or [])
    shown_names = list(dict.fromkeys(m for method in found.gathered.methods for m in _counts(method).get("observed", {})))
    return {
        "provenance": [(name, str(value)) for name, value in rows if value],
        "modalities": modalities,
        "patterns": [
            {
                "dots": [name in pattern.split("+") for name in names],
                "count": f"{count:,}",
                "share": round(100 * count / max(total, 1), 2),
                "words": f"{count} items with {pattern or 'nothing'}",
            }
            for pattern, count in patterns.items()
        ],
        "pattern_modalities": names,
        "shown": [_shown(method, shown_names) for method in found.gathered.methods if _counts(method)],
        "shown_modalities": shown_names,
    }


def _modality(store: dict[str, Any], name: str, gaps: dict[str, int], total: int) -> dict[str, Any]:
    observed = total - sum(gaps.values())
    parts = [{"kind": "observed", "share": round(100 * observed / total, 2)}]
    parts += [{"kind": kind, "share": round(100 * gaps.get(key, 0) / total, 2)} for key, kind, _ in _REASONS if gaps.get(key)]
    words = [f"{observed} observed", *(f"{gaps[key]} {text}" for key, _, text in _REASONS if gaps.get(key))]
    return {
        "name": name,
        "encoder": (store.get("encoders") or {}).get(name, ""),
        "dimension": (store.get("dims") or {}).get(name, ""),
        "observed": f"{observed:,}",
        "parts": parts,
        "words": f"{name}: {', '.join(words)}",
    }


def _counts(method: Method) -> dict[str, Any]:
    return dict(method.runs[0].summary.get("counts") or {}) if method.runs else {}


def _shown(method: Method, names: Sequence[str]) -> dict[str, Any]:
    counts = _counts(method)
    return {
        "label": method.label,
        "scenario": method.scenario,
        "total": counts.get("train_items", ""),
        "complete": counts.get("complete", ""),
        "counts": [counts.get("observed", {}).get(name, 0) for name in names],
    }


def _runs(found: Findings) -> dict[str, Any]:
    methods = [*found.gathered.methods, *found.gathered.absent]
    first = next((run.environment for method in methods for run in method.runs if run.environment), {})
    summary = ", ".join(f"{key} {first[key]}" for key in ("calmrl_lab", "python", "platform") if first.get(key))
    return {
        "gathered": found.gathered,
        "methods": [_method(method) for method in methods],
        "environment": {"summary": summary, "text": yaml.safe_dump(first, sort_keys=False, allow_unicode=True)}
        if first
        else None,
    }


def _trained(found: Findings) -> str:
    return _chart(found.figures["training"]) if "training" in found.figures else ""


def _method(method: Method) -> dict[str, Any]:
    count = len(method.runs)
    config = {key: value for key, value in method.runs[0].config.items() if key != "seed"} if method.runs else method.settings
    tuning = "; ".join(
        f"{json.dumps(row.get('settings', {}), sort_keys=True)}: MRR {row.get('validation_mrr', float('nan')):.4f}"
        for row in method.tuning
    )
    runs = [
        {
            "name": run.name, "seed": run.seed, "epochs": run.summary.get("epochs", ""), "best_epoch": run.summary.get("best_epoch", ""),
            "validation": _number(run.summary.get("validation_mrr"), 4), "seconds": _number(run.summary.get("seconds"), 1),
        }
        for run in method.runs
    ]  # fmt: skip
    return {
        "label": method.label,
        "what": f"{method.role}, {count} run{'s' if count != 1 else ''}",
        "runs": runs,
        "tuning": tuning,
        "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    }


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else ""


def _files(files: Sequence[str]) -> str:
    """One row a table or figure, with a link a format."""
    formats: dict[str, list[str]] = {}
    for name in files:
        formats.setdefault(name.rsplit(".", 1)[0], []).append(name)
    rows = "".join(
        f'<tr><th scope="row">{_escape(stem)}</th><td>'
        + "".join(f'<a href="{_escape(name)}">{_escape(name.rsplit(".", 1)[1])}</a>' for name in names)
        + "</td></tr>"
        for stem, names in formats.items()
    )
    head = '<thead><tr><th scope="col">what</th><th scope="col">as</th></tr></thead>'
    return f'<div class="scroll"><table class="files">{head}<tbody>{rows}</tbody></table></div>'
