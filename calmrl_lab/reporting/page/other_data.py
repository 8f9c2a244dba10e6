"""Results of the same methods on other data: the main tables of further experiments, for the page of the first."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from calmrl_lab.reporting.content.accuracies import accuracy_table, classifications
from calmrl_lab.reporting.content.main_tables import summary_table
from calmrl_lab.reporting.output.palette import inks
from calmrl_lab.reporting.output.proxy_notes import marked_tables
from calmrl_lab.reporting.output.table import Table
from calmrl_lab.reporting.results.collect import Gathered, gather
from calmrl_lab.reporting.results.comparisons import comparisons
from calmrl_lab.reporting.results.recalls import recalls


@dataclass(frozen=True)
class OtherData:
    """One further experiment; the names of its tables end with that of its folder."""

    gathered: Gathered
    tables: tuple[Table, ...]


def other_data(folder: Path | str) -> OtherData:
    """Recall and classification tables of the experiment in `folder`. Raises CalmrlError if it has nothing to report."""
    gathered = gather(folder)
    found, colours = recalls(gathered), inks(gathered.methods)
    tables = []
    if found.methods and found.directions:
        tables.append(summary_table(found, comparisons(gathered, found), colours))
    accuracies = classifications(gathered)
    if accuracies is not None:
        tables.append(accuracy_table(accuracies, colours))
    place = re.sub(r"[^A-Za-z0-9]+", "_", gathered.folder.resolve().name)
    of = str(gathered.store.get("dataset") or place)
    named = {
        f"{table.name}_{place}": replace(table, name=f"{table.name}_{place}", caption=f"{table.caption}, {of}")
        for table in tables
    }
    return OtherData(gathered, tuple(marked_tables(named, gathered).values()))
