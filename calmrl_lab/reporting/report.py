"""Writes a report: a folder of runs becomes a folder with index.html, tables/ and figures/."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from calmrl_lab.errors import CalmrlError
from calmrl_lab.reporting.content import published as quoted
from calmrl_lab.reporting.content.accuracies import accuracy_table, classifications, single_table
from calmrl_lab.reporting.content.accuracy_differences import class_differences, difference_table
from calmrl_lab.reporting.content.calibration_figures import anchor_shift, imputation_error, reliability
from calmrl_lab.reporting.content.examples import Cases, cases, harmed_fillings, worst_shifts
from calmrl_lab.reporting.content.main_tables import direction_table, imputation_table, recall_table, shift_table, summary_table
from calmrl_lab.reporting.content.missing_modalities import curve_figure, curve_table, gain_table, robustness
from calmrl_lab.reporting.content.nearest_items import Items, describe, found_first, source
from calmrl_lab.reporting.content.published import beside, footnotes
from calmrl_lab.reporting.content.rerank_table import rerank_table
from calmrl_lab.reporting.content.retrieval_figures import differences, oracle, overview, training
from calmrl_lab.reporting.output.drawing import Figure
from calmrl_lab.reporting.output.palette import inks
from calmrl_lab.reporting.output.proxy_notes import marked_figures, marked_tables
from calmrl_lab.reporting.output.table import Table
from calmrl_lab.reporting.page.context import Findings
from calmrl_lab.reporting.page.narrative import Narrative, narrate
from calmrl_lab.reporting.page.other_data import other_data
from calmrl_lab.reporting.page.page import page
from calmrl_lab.reporting.results.anchor_shifts import Shifts, shifts
from calmrl_lab.reporting.results.collect import Gathered, gather
from calmrl_lab.reporting.results.comparisons import comparisons
from calmrl_lab.reporting.results.feature_reference import feature_recalls
from calmrl_lab.reporting.results.imputation_errors import Imputations, imputations
from calmrl_lab.reporting.results.recalls import recalls
from calmrl_lab.runs.artifact_folder import ArtifactFolder

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore


# Endings of the tables and figures of a report.
_SUFFIXES = frozenset({".csv", ".md", ".tex", ".svg", ".pdf"})


class ReportFolder(ArtifactFolder):
    """The folder of a report: a page, tables and figures."""

    kind: ClassVar[str] = "report"
    PAGE: ClassVar[str] = "index.html"
    TABLES: ClassVar[str] = "tables"
    FIGURES: ClassVar[str] = "figures"

    @classmethod
    def refuse_foreign(cls, path: Path) -> None:
        """CalmrlError if `path` holds folders of another kind, or a page that is not ours; single files of others are kept (`keep`)."""
        page = path / cls.PAGE
        if page.is_file() and b'content="calmrl-lab ' not in page.read_bytes()[:4000]:
            raise CalmrlError(f"'{page}' is not a report of calmrl-lab and would be overwritten", hint="choose another --out")
        for entry in sorted(path.iterdir()):
            if entry.is_dir() and entry.name not in (cls.TABLES, cls.FIGURES):
                raise CalmrlError(f"'{path}' holds the folder '{entry.name}', so it is no report", hint="choose another --out")

    def keep(self, old: Path) -> None:
        """Copy what somebody else has put into the report folder `old`: everything but tables, figures and the page."""
        for path in (*old.glob("*"), *old.glob(f"{self.TABLES}/*"), *old.glob(f"{self.FIGURES}/*")):
            name = path.relative_to(old)
            ours = path.name == self.PAGE if path.parent == old else path.suffix in _SUFFIXES
            if path.is_file() and not ours:
                (self.path / name).parent.mkdir(exist_ok=True)
                shutil.copy2(path, self.path / name)


@dataclass(frozen=True)
class Report:
    """A written report: where it lies, and what it says."""

    folder: Path
    title: str
    narrative: Narrative
    tables: dict[str, Table]
    files: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def page(self) -> Path:
        return self.folder / "index.html"

    def payload(self) -> dict[str, Any]:
        """The report as plain values, for --json."""
        return {
            "page": str(self.page),
            "title": self.title,
            "headline": self.narrative.headline,
            "paragraph": self.narrative.paragraph,
            "warnings": list(self.narrative.warnings),
            "problems": list(self.problems),
            "files": [str(self.folder / name) for name in self.files],
            "summary": [dict(record) for record in self.tables["summary"].records] if "summary" in self.tables else [],
        }


def write_report(runs: Path | str, out: Path | str | None = None, also: Sequence[Path | str] = ()) -> Report:
    """Gather `runs` and write the report into `out` (default: reports/<name of the runs folder>).

    The main tables of the experiments in `also` (other data) are added in a section of their own.

    The same runs give the same bytes. Every file is replaced whole; index.html comes last. Raises CalmrlError if there is nothing to
    report or `out` cannot be written.
    """
    gathered = gather(runs)
    folder = Path(out) if out is not None else Path("reports") / gathered.folder.resolve().name
    with ReportFolder.replacing(folder) as new:
        report = _written(new, gathered, also)
        new.keep(folder)
    return replace(report, folder=folder)


def _written(folder: ReportFolder, gathered: Gathered, also: Sequence[Path | str]) -> Report:
    """The report of `gathered` in `folder`."""
    found = recalls(gathered)
    compared = comparisons(gathered, found)
    errors, moved = imputations(gathered), shifts(gathered)
    colours = inks(gathered.methods)
    tables: dict[str, Table] = {}
    figures: dict[str, Figure] = {}
    if found.methods and found.directions:
        tables |= {
            "summary": summary_table(found, compared, colours),
            "recall": recall_table(found, colours),
            "by_direction": direction_table(found, feature_recalls(gathered)),
        }
        figures["overview"] = overview(found, colours)
        more = (differences(compared, found), oracle(found, compared, colours))
        figures |= {figure.name: figure for figure in more if figure is not None}
        table = beside(gathered, found, colours)
        tables |= {table.name: table} if table else {}
    if errors is not None:
        tables["imputation_mse"] = imputation_table(errors)
        figures["fig3_imputation_mse"] = imputation_error(errors)
        trusted = reliability(errors)
        figures |= {trusted.name: trusted} if trusted else {}
    if moved is not None:
        tables["anchor_shift"] = shift_table(moved)
        figures["fig4_anchor_shift"] = anchor_shift(moved)
    trained = training(gathered.methods, colours)
    figures |= {trained.name: trained} if trained else {}
    accuracies, hidden = classifications(gathered), robustness(gathered)
    if accuracies is not None:
        made = (accuracy_table(accuracies, colours), single_table(accuracies, colours))
        tables |= {table.name: table for table in made}
    by_class = class_differences(gathered, compared.roles)
    if by_class is not None:
        tables["classification_differences"] = difference_table(by_class, colours)
    if hidden is not None:
        made = (curve_table(hidden, colours), gain_table(hidden, colours))
        tables |= {table.name: table for table in made if table.rows}
        curves = curve_figure(hidden, colours)
        figures |= {curves.name: curves} if curves else {}
    again = rerank_table(gathered, colours)
    tables |= {again.name: again} if again else {}
    store = source(gathered)
    items = describe(store)
    chosen = cases(gathered, found, compared.roles.calibrated[0], compared.roles.fair) if compared.roles.calibrated else None
    first = _first(store, chosen, gathered.split)
    tables |= _error_analysis(errors, moved, items)
    tables, figures = marked_tables(tables, gathered), marked_figures(figures, gathered)
    others = tuple(other_data(place) for place in also)
    tables |= {table.name: table for other in others for table in other.tables}
    tables |= _published_tables(tables)
    narrative = narrate(gathered, found, compared, errors, moved, by_class)
    contents = {**_table_files(tables), **_figure_files(figures)}
    findings = Findings(
        gathered, found, compared, errors, moved, narrative, colours, tables, figures, footnotes(), chosen, first, items, others
    )
    html = page(findings, sorted(contents))
    for name, data in {**contents, folder.PAGE: html.encode()}.items():
        folder.write_bytes(name, data)
    every = [*gathered.problems, *(problem for other in others for problem in other.gathered.problems)]
    problems = tuple(f"{problem.run}: {problem.sentence}" for problem in every)
    return Report(folder.path, gathered.title, narrative, tables, tuple(sorted(contents)), problems)


def _first(store: FeatureStore | None, chosen: Cases | None, split: str) -> dict[str, dict[str, list[str]]]:
    """What both runs of the examples find first; empty without the store."""
    if store is None or chosen is None:
        return {}
    items = [case.item for _, _, picked in chosen.kinds for case in picked]
    return {run.name: found_first(store, run, chosen.direction, items, split) for run in (chosen.run, chosen.other)}


def _error_analysis(errors: Imputations | None, moved: Shifts | None, items: Items) -> dict[str, Table]:
    tables = [
        worst_shifts(moved.method, moved.split, items) if moved else None,
        harmed_fillings(errors.method, errors.split, items) if errors else None,
    ]
    return {table.name: table for table in tables if table is not None}


def _published_tables(tables: dict[str, Table]) -> dict[str, Table]:
    """What others have published on the questions that these tables answer."""
    asked = {
        "published": quoted.retrieval,
        "missing_curves": quoted.missing,
        "aggregation_gain": quoted.joining,
        "classification": quoted.classification,
    }
    made = [table() for name, table in asked.items() if name in tables]
    return {table.name: table for table in made}


def _table_files(tables: dict[str, Table]) -> dict[str, bytes]:
    files = {}
    for name, table in tables.items():
        files[f"tables/{name}.csv"] = table.to_csv().encode()
        files[f"tables/{name}.md"] = table.to_markdown().encode()
        files[f"tables/{name}.tex"] = table.to_latex().encode()
    return files


def _figure_files(figures: dict[str, Figure]) -> dict[str, bytes]:
    files = {}
    for name, figure in figures.items():
        files[f"figures/{name}.svg"] = figure.svg().encode()
        files[f"figures/{name}.pdf"] = figure.pdf()
    return files
