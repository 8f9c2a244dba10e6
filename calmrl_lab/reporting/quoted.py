"""What was published besides the paper's Table 1, on the sets and questions of a report: tables of facts, each with its source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields

from calmrl_lab.reporting.published import Fact, facts
from calmrl_lab.reporting.tables import Cell, Column, Table

_FIELDS = tuple(field.name for field in fields(Fact))
_RETRIEVAL = ("GRAM-T1", "GRAM-T2", "GRAM-T4", "GRAM-users", "PMRL-T1", "HYVOL-T1", "HYVOL-T2", "HYVOL-T3", "SCALAR-T1", "SCALAR-T2", "TRIANGLE", "TRIANGLE-T3")  # fmt: skip
_SETS = ("MSR-VTT", "DiDeMo", "ActivityNet", "VATEX", "AudioCaps")


def retrieval() -> Table:
    """Recall@1 of the systems of Table 1 and their successors, a row a system, inputs and source."""
    chosen = [fact for fact in facts() if fact.table in _RETRIEVAL and fact.task != "classification"]
    notes = (
        "R@1 in percent; T→V: text asks for the item, V→T the other way round, T→A and A→T with sound. T-VAS: text against vision, audio and subtitle, and "
        "so on. Differences between sources are differences of protocol (inputs, re-ranking, clips that could still be had), and as large as those "
        "between systems.",
    )
    columns = sorted({(f.dataset, f.task) for f in chosen}, key=lambda key: (_SETS.index(key[0]), key[1] not in ("T2V", "T2A")))
    return _spread("published_retrieval", "Published retrieval", chosen, columns, lambda f: (f.dataset, f.task), notes)


def missing() -> Table:
    """Recall@1 when one modality of a share of the gallery is missing."""
    chosen = [fact for fact in facts() if fact.table in ("HYVOL-T4", "SCALAR-T3")]
    columns = list(dict.fromkeys(("", fact.setting) for fact in chosen))
    notes = ("R@1 in percent when one modality is removed from that share of the gallery. Other sets and encoders than ours.",)
    return _spread(
        "published_missing", "Published: modalities missing at test time", chosen, columns, lambda f: ("", f.setting), notes,
        lambda f: (f.method, f"{f.dataset}, {_arrow(f.task)}"),
    )  # fmt: skip


def joining() -> Table:
    """What joining modalities gains over the best single one."""
    chosen = [fact for fact in facts() if fact.table == "SCALAR-T4"]
    columns = [("", name) for name in _SETS]
    notes = (
        "Points of R@1, all modalities together minus the best single one, as published. Other sets and encoders than ours.",
    )
    name, caption = "published_joining", "Published: all modalities together against the best single one"
    return _spread(name, caption, chosen, columns, lambda f: ("", f.dataset), notes)


def classification() -> Table:
    """Accuracies of the systems on VGGSound and other sets."""
    chosen = [fact for fact in facts() if fact.task == "classification" and not fact.table.startswith("CalMRL")]
    columns = list(dict.fromkeys(("", fact.dataset) for fact in chosen))
    notes = ("Accuracy in percent, as published. Other sets and encoders than ours.",)
    return _spread("published_classification", "Published classification", chosen, columns, lambda f: ("", f.dataset), notes)


def _inputs(fact: Fact) -> tuple[str, str]:
    return fact.method, fact.setting or "–"


def _spread(
    name: str,
    caption: str,
    chosen: Sequence[Fact],
    columns: Sequence[tuple[str, str]],
    column: Callable[[Fact], tuple[str, str]],
    notes: Sequence[str],
    row: Callable[[Fact], tuple[str, str]] = _inputs,
) -> Table:
    """Facts as a table: a row a system and what it was asked with, a column a (group, heading); the source in the last column and on hover."""
    lines: dict[tuple[str, str, str], dict[tuple[str, str], Fact]] = {}
    for fact in chosen:
        lines.setdefault((*row(fact), fact.source), {})[column(fact)] = fact
    rows = [
        [Cell(method), Cell(setting), *(_cell(found.get(key)) for key in columns), Cell(source)]
        for (method, setting, source), found in sorted(
            lines.items(), key=lambda line: (line[0][1], line[0][0].lower(), line[0][2])
        )
    ]
    heads = [Column("system", numeric=False), Column("on", numeric=False)]
    heads += [Column(_arrow(heading), group=group) for group, heading in columns]
    records = [asdict(fact) for fact in chosen]
    return Table(name, caption, [*heads, Column("source", numeric=False)], rows, notes, _FIELDS, records)


def _arrow(task: str) -> str:
    return f"{task[0]}→{task[2]}" if len(task) == 3 and task[1] == "2" else task


def _cell(fact: Fact | None) -> Cell:
    if fact is None:
        return Cell("")
    return Cell(fact.value.replace("-", "−"), title=f"published: {fact.source}", sort=float(fact.value))
