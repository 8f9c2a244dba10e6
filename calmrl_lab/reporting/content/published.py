"""Numbers published in the paper and for other systems, with their sources; they are on other data than ours."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from calmrl_lab.reporting.content.main_tables import arrow, signed, span
from calmrl_lab.reporting.output.palette import Ink
from calmrl_lab.reporting.output.table import Cell, Column, Table
from calmrl_lab.reporting.results.collect import Gathered, Method
from calmrl_lab.reporting.results.comparisons import Comparisons, roles
from calmrl_lab.reporting.results.recalls import Direction, Recalls

_FILE = Path(__file__).with_name("published.csv")
# The paper's text is our caption: the retrieval tasks of its Table 1 and the directions of ours that ask the same kind of question.
_TASKS = (("MSR-VTT", "T2V", ("caption", "vision")), ("MSR-VTT", "V2T", ("vision", "caption")),
          ("AudioCaps", "T2A", ("caption", "audio")), ("AudioCaps", "A2T", ("audio", "caption")))  # fmt: skip
# Datasets of those tasks, as stores name them.
_SAME = frozenset({"msrvtt", "audiocaps"})
# Rows of the paper's Table 1; "up" marks continued training on data with missing modalities. What the paper prints for the first two is not
# known here: their numbers are those of the released models, as others quote them.
_QUOTED = ("ImageBind", "LanguageBind")
_ROWS = {"imagebind": "ImageBind", "languagebind": "LanguageBind", "gram": "GRAM_up", "triangle": "TRIANGLE_up"}
FIELDS = ("system", "ours_label", "dataset", "task", "published", "source", "ours", "low", "high")
_SYSTEMS = (
    *((name, f"{name} †") for name in _QUOTED),
    ("VAST", "VAST, as released"),
    ("GRAM_up", "GRAM ↑"),
    ("TRIANGLE_up", "TRIANGLE ↑"),
    ("PMRL_up", "PMRL ↑"),
    ("CalMRL_up", "CalMRL ↑"),
)


@dataclass(frozen=True)
class Fact:
    """One published number; `value` is text, as some are ranges; `setting` says which inputs, which training, how much was hidden."""

    table: str
    method: str
    dataset: str
    setting: str
    task: str
    metric: str
    value: str
    source: str


def facts(table: str | None = None) -> list[Fact]:
    """All published numbers in the package, or those of one table ("CalMRL-T1", ...)."""
    with open(_FILE, encoding="utf-8", newline="") as file:
        found = [Fact(**row) for row in csv.DictReader(file)]
    return [fact for fact in found if table in (None, fact.table)]


def beside(gathered: Gathered, recalls: Recalls, inks: dict[str, Ink]) -> Table | None:
    """Table 1 of the paper, with our run of the same system in the same row; None if no direction corresponds."""
    known = [task for task in _TASKS if task[2] in recalls.all_directions]
    if not known:
        return None
    values = {(fact.method, fact.dataset, fact.task): fact for fact in _table_1()}
    ours = _ours(gathered)
    dataset = str(gathered.store.get("dataset") or "our data")
    columns = [Column("system", numeric=False)]
    columns += [Column(f"{task[:1]}→{task[2:]}", group=f"published: {name}") for name, task, _ in _TASKS]
    columns.append(Column("average", group="published"))
    columns += [Column(arrow(direction), group=f"ours: {dataset}, R@1 %") for _, _, direction in known]
    rows, records, own = [], [], [name for name in ours if name not in dict(_SYSTEMS)]
    for key, label in (*_SYSTEMS, *((name, "") for name in own)):
        method = ours.get(key)
        ours_too = f"ours: {method.label}" if method else ""
        row = [Cell(label, ours_too, swatch=_swatch(method, inks)) if label else _own(method, inks)]
        for name, task, _ in _TASKS:
            row.append(_published(values.get((key, name, task))))
        row.append(_published(next((f for (m, d, _), f in values.items() if m == key and d.startswith("average")), None)))
        row += [_measured(recalls, method, direction) for _, _, direction in known]
        rows.append(row)
        records += [_record(label, method, values.get((key, *task[:2])), recalls, task) for task in _TASKS]
    same = same_data(gathered)
    notes = (
        "Published: R@1 in percent, arXiv 2511.12034, Table 1, on videos and sound of the named sets with the VAST encoders; ↑ is continued "
        "training with missing modalities; the average is over the paper's six sets and both directions. "
        "†: the released model without further training, as quoted by HYVOL; what the paper prints for it is not known here.",
        f"Ours: {dataset} as it was extracted here; only heads on cached features were trained, and no caption is re-ranked."
        if same
        else f"Ours: {dataset}, other items, other encoders, another gallery. Levels cannot be compared across the two halves; only whether the "
        "order of the systems is the same.",
    )
    return Table(
        "published",
        f"Table 1 of the paper and ours{'' if same else ', on other data'}",
        columns,
        rows,
        notes,
        FIELDS,
        [record for record in records if record["published"] or record["ours"] is not None],
        rules=(len(_SYSTEMS),) if own else (),
    )


def _table_1() -> list[Fact]:
    """The paper's Table 1, and for the systems whose rows are not known what others quote of the same two sets."""
    quoted = [fact for fact in facts() if fact.method in _QUOTED and fact.table.startswith("HYVOL")]
    return [*facts("CalMRL-T1"), *(fact for fact in quoted if fact.dataset in {name for name, _, _ in _TASKS})]


def _record(
    label: str, method: Method | None, fact: Fact | None, recalls: Recalls, task: tuple[str, str, Direction]
) -> dict[str, object]:
    found = recalls[method.name].directions.get(task[2]) if method else None
    ours = found.recalls[1].scaled(100) if found else None
    return {
        "system": label or (method.label if method else ""), "ours_label": method.label if method else "", "dataset": task[0],
        "task": task[1], "published": fact.value if fact else "", "source": fact.source if fact else "",
        "ours": ours.value if ours else None, "low": ours.low if ours else None, "high": ours.high if ours else None,
    }  # fmt: skip


def gain_in_words(compared: Comparisons) -> str:
    """What CalMRL adds to its fair baseline in the paper and here, in one sentence; empty without either of the two here."""
    averages = {fact.method: float(fact.value) for fact in facts("CalMRL-T1") if fact.task == "avg"}
    main, fair = (
        next((method for method in compared.roles.calibrated if method.objective == "calmrl"), None),
        compared.roles.fair,
    )
    found = compared.of(main.name, fair.name) if main and fair else None
    if main is None or fair is None or found is None or fair.objective != "pmrl":
        return ""
    points = found.scaled(100)
    return (
        f"CalMRL ↑ minus PMRL ↑, the fair baseline: {signed(averages['CalMRL_up'] - averages['PMRL_up'])} points on average in the paper, "
        f"which gives no interval; {signed(points.value)} {span(points, sign=True)} here ({main.label} minus {fair.label})."
    )


def same_data(gathered: Gathered) -> bool:
    """Whether the store holds one of the datasets that the published numbers are about."""
    return str(gathered.store.get("dataset")) in _SAME


def _own(method: Method | None, inks: dict[str, Ink]) -> Cell:
    return Cell(method.label if method else "", swatch=_swatch(method, inks))


def _swatch(method: Method | None, inks: dict[str, Ink]) -> str:
    return f"var({inks[method.name].variable})" if method else ""


def _published(fact: Fact | None) -> Cell:
    if fact is None:
        return Cell("")
    return Cell(fact.value, title=f"published: {fact.source}", sort=float(fact.value))


def _measured(recalls: Recalls, method: Method | None, direction: Direction) -> Cell:
    found = recalls[method.name].directions.get(direction) if method else None
    if found is None:
        return Cell("")
    value = found.recalls[1].scaled(100)
    return Cell(f"{value.value:.1f}", span(value), sort=round(value.value, 6))


def _ours(gathered: Gathered) -> dict[str, Method]:
    """Our runs by the row of the paper with the same queries and candidates, then those the paper has no row for."""
    parts = roles(gathered)
    found: dict[str, Method] = {}
    if parts.fair is not None and parts.fair.objective == "pmrl":
        found["PMRL_up"] = parts.fair
    calmrl = next((method for method in parts.calibrated if method.objective == "calmrl"), None)
    if calmrl is not None:
        found["CalMRL_up"] = calmrl
    for method in gathered.role("baseline"):
        key = _ROWS.get(method.objective)
        # The paper's VAST is as it was released: heads that came with the features, and no training.
        key = "VAST" if method.objective == "none" and method.init == "stored" else key
        if key and key not in found:
            found[key] = method
    taken = {method.name for method in found.values()}
    return found | {method.name: method for method in gathered.methods if method.name not in taken}


def footnotes() -> list[str]:
    """The published numbers that have no place in a table of ours, as sentences with their source."""
    lines = []
    second = facts("CalMRL-T2")
    if second:
        values = ", ".join(f"{fact.method} {fact.value}" for fact in second)
        lines.append(
            f"Published, Table 2: average accuracy over four classification sets in percent: {values} ({second[0].source})."
        )
    for fact in facts("CalMRL-T3"):
        lines.append(
            f"Published, Table 3: gain in R@1 by continued training on vision and text only: {fact.value} points ({fact.source})."
        )
    return lines


_FIELDS = tuple(field.name for field in fields(Fact))
_RETRIEVAL = ("GRAM-T1", "GRAM-T2", "GRAM-T4", "GRAM-users", "PMRL-T1", "HYVOL-T1", "HYVOL-T2", "HYVOL-T3", "SCALAR-T1", "SCALAR-T2", "TRIANGLE", "TRIANGLE-T3")  # fmt: skip
_SETS = ("MSR-VTT", "DiDeMo", "ActivityNet", "VATEX", "AudioCaps")


def retrieval() -> Table:
    """Recall@1 of the systems of Table 1 and their successors, a row per system, inputs and source."""
    chosen = [fact for fact in facts() if fact.table in _RETRIEVAL and fact.task != "classification"]
    notes = (
        "R@1 in percent; T→V: queries are texts, V→T the other way round, T→A and A→T with sound. T-VAS: text against vision, audio and subtitle, and "
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
    """Facts as a table: a row per system and query, a column per (group, heading); the source in the last column and on hover."""
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
