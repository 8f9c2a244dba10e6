"""The contents of a report's page, and the sections it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from calmrl_lab.reporting.content.examples import Cases
from calmrl_lab.reporting.content.nearest_items import Items
from calmrl_lab.reporting.output.drawing import Figure
from calmrl_lab.reporting.output.palette import Ink
from calmrl_lab.reporting.output.table import Table
from calmrl_lab.reporting.page.narrative import Narrative
from calmrl_lab.reporting.page.other_data import OtherData
from calmrl_lab.reporting.results.anchor_shifts import Shifts
from calmrl_lab.reporting.results.collect import Gathered
from calmrl_lab.reporting.results.comparisons import Comparisons
from calmrl_lab.reporting.results.imputation_errors import Imputations
from calmrl_lab.reporting.results.recalls import Recalls


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
    others: Sequence[OtherData] = ()
