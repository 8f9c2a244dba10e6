"""The HTML page of a report, in one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calmrl_lab._version import __version__
from calmrl_lab.reporting.content.main_tables import signed, span
from calmrl_lab.reporting.output.palette import INKS
from calmrl_lab.reporting.page.context import Findings, Section
from calmrl_lab.reporting.page.record_sections import record_sections
from calmrl_lab.reporting.page.result_sections import figcaption, result_sections
from calmrl_lab.reporting.page.terms import terms
from calmrl_lab.reporting.results.collect import Gathered

_TEMPLATES = Path(__file__).with_name("templates")


def page(found: Findings, files: Sequence[str]) -> str:
    """The HTML page; `files` are the paths beside it, linked at its end."""
    environment = _environment()
    sections = [*result_sections(found, environment), *record_sections(found, files, environment)]
    return environment.get_template("page.html.j2").render(
        gathered=found.gathered,
        narrative=found.narrative,
        sections=[Section(s.id, s.title, _safe(s.body), s.intro, s.short or s.title) for s in sections],
        overview=_safe(_overview(found)),
        tiles=_tiles(found),
        terms=terms(found),
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
    """The three or four most important numbers."""
    parts, tiles = found.compared.roles, []
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
    return f'<figure class="overview" id="{figure.name}">{figure.inline(narrow=True)}{figcaption(figure)}</figure>'
