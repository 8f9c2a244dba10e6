"""One table, five forms: plain text, Markdown, LaTeX (booktabs), HTML and CSV."""

from __future__ import annotations

import csv
import io
import re
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from calmrl_lab.reporting.output.thumbnails import as_html

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "→": r"$\rightarrow$", "±": r"$\pm$", "−": r"$-$", "–": "--", "—": "---", "·": r"$\cdot$", "×": r"$\times$", "≥": r"$\geq$",
    "≤": r"$\leq$", "↑": r"$\uparrow$", "«": r"$\ll$", "»": r"$\gg$", "²": r"$^2$", "Δ": r"$\Delta$", "†": r"\dag{}", "‖": r"$\|$", "√": r"$\surd$", "α": r"$\alpha$", "…": r"\ldots{}",
    "“": "``", "”": "''", "’": "'", "\u00a0": "~", "\u2009": r"\,",
}  # fmt: skip


# Letters that LaTeX has only with packages or other fonts, and that have no accent to lose.
_PLAIN = {
    "Ð": "D", "ð": "d", "Þ": "Th", "þ": "th", "Đ": "D", "đ": "d", "Ħ": "H", "ħ": "h", "ĸ": "k", "Ŋ": "NG", "ŋ": "ng", "Ŧ": "T", "ŧ": "t",
}  # fmt: skip
_WITHOUT_OGONEK = frozenset("ĄąĘęĮįŲųĿŀŉſ")
# Rows that fit on a page with caption and notes.
_PAGE = 50


def tex(text: str) -> str:
    """`text` with everything escaped that LaTeX would read as a command; letters that plain LaTeX does not have lose their accents or become '?'."""
    written = []
    for char in re.sub(r"[ \t\r\n]+", " ", text):
        if char in _TEX:
            written.append(_TEX[char])
        elif char in _PLAIN:
            written.append(_PLAIN[char])
        elif 0x20 <= ord(char) < 0x180 and not 0x7F <= ord(char) < 0xA0 and char not in _WITHOUT_OGONEK:
            written.append(char)
        else:
            plain = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
            written.append(plain if plain.isprintable() and plain else "?")
    return "".join(written)


@dataclass(frozen=True)
class Cell:
    """What one place of a table shows: `text`, the interval or remark after it, a title for hovering, and what it sorts by; on a page also a
    `picture` (a data URI, or a character)."""

    text: str
    detail: str = ""
    bold: bool = False
    title: str = ""
    sort: float | str | None = None
    swatch: str = ""
    picture: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.detail}".strip()


@dataclass(frozen=True)
class Column:
    """A heading; `group` is a heading over several columns."""

    heading: str
    numeric: bool = True
    group: str = ""
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns, with a caption and notes; `records` under `fields` are the same facts, unrounded, for CSV."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    fields: Sequence[str] = ()
    records: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    rules: Sequence[int] = ()
    """Rows before which a thin rule is drawn."""

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), (
                f"table {self.name}: a row of {len(row)} cells under {len(self.columns)} columns"
            )

    def to_csv(self) -> str:
        """Comma-separated, one header line, numbers unrounded to six digits; empty where a number does not exist.

        A table without records gives its columns as they are shown, the interval or remark of a cell after its number.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        if self.fields:
            writer.writerow(self.fields)
            writer.writerows([_plain(record[name]) for name in self.fields] for record in self.records)
        else:
            writer.writerow(self._heads())
            writer.writerows([str(cell).replace("−", "-") for cell in row] for row in self.rows)
        return out.getvalue()

    def _heads(self) -> list[str]:
        return [f"{column.group} {column.heading}".strip() for column in self.columns]

    def to_markdown(self) -> str:
        """A pipe table under its caption; notes as a list."""
        lines = [
            f"**{self.caption}**",
            "",
            _pipes(self._heads()),
            _pipes(["---:" if c.numeric else "---" for c in self.columns], raw=True),
        ]
        lines += [_pipes([f"**{cell}**" if cell.bold else str(cell) for cell in row]) for row in self.rows]
        if self.notes:
            lines += ["", *(f"- {_inline(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def to_latex(self) -> str:
        """A float that needs only \\usepackage{booktabs}; a table longer than a page needs longtable too, and says so in its first line."""
        align = "".join("r" if column.numeric else "l" for column in self.columns)
        heads = [_stacked(column.heading, 11, "r" if column.numeric else "l") for column in self.columns]
        head = [r"\toprule", *self._tex_groups(), " & ".join(heads) + r" \\", r"\midrule"]
        # Wide tables have the interval below its value, so that they fit a text column.
        stacked = len(self.columns) > 6
        body = []
        for index, row in enumerate(self.rows):
            if index and index in self.rules:
                body.append(r"\addlinespace")
            body.append(
                " & ".join([_stacked_cell(row[0]), *(_tex_cell(cell, stacked) for cell in row[1:])])
                + (r" \\[3pt]" if stacked else r" \\")
            )
        caption = rf"\caption{{{tex(self.caption)}}}\label{{tab:{self.name.replace('_', '-')}}}"
        notes = (
            [rf"\par\smallskip\noindent\parbox{{\linewidth}}{{\scriptsize {' '.join(map(tex, self.notes))}}}"]
            if self.notes
            else []
        )
        size = [r"\footnotesize", rf"\setlength{{\tabcolsep}}{{{2 if len(self.columns) > 8 else 3}pt}}"]
        spec = rf"{{@{{}}{align}@{{}}}}"
        if len(self.rows) > _PAGE:
            lines = [
                r"% \usepackage{booktabs,longtable}",
                r"\begingroup",
                *size,
                rf"\begin{{longtable}}{spec}",
                caption + r" \\",
            ]
            lines += [*head, r"\endhead", *body, r"\bottomrule", r"\end{longtable}", *notes, r"\endgroup"]
        else:
            lines = [r"% \usepackage{booktabs}", r"\begin{table}", r"\centering", *size, caption, rf"\begin{{tabular}}{spec}"]
            lines += [*head, *body, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}"]
        return "\n".join(lines) + "\n"

    def _tex_groups(self) -> list[str]:
        spans = self._spans()
        if not any(name for name, _ in spans):
            return []
        cells, rules, at = [], [], 1
        for name, width in spans:
            shown = _stacked(name, 12 * width, "c")
            cells.append(rf"\multicolumn{{{width}}}{{c}}{{{shown}}}" if name else " & ".join([""] * width))
            if name:
                rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
            at += width
        return [" & ".join(cells) + r" \\", "".join(rules)]

    def _spans(self) -> list[tuple[str, int]]:
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and column.group and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans

    def to_html(self) -> str:
        """A <table> in a box of its own that scrolls sideways, so that the page never does."""
        spans = self._spans()
        head = ""
        if any(name for name, _ in spans):
            cells = "".join(
                f'<th scope="colgroup" colspan="{w}">{escape(n)}</th>' if n else f'<td colspan="{w}"></td>' for n, w in spans
            )
            head = f'<tr class="groups">{cells}</tr>'
        cells = "".join(
            f'<th scope="col"{_class("num" if c.numeric else "")}{_title(c.title)}>{escape(c.heading)}</th>'
            for c in self.columns
        )
        body = "".join(
            f"<tr{_class('rule' if index in self.rules else '')}>{''.join(self._html_cell(*pair) for pair in enumerate(row))}</tr>"
            for index, row in enumerate(self.rows)
        )
        notes = f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in self.notes)}</ul>' if self.notes else ""
        name = escape(self.name)
        return (
            f'<figure class="table" id="table-{name}"><p class="caption" id="caption-{name}">{escape(self.caption)}</p>'
            f'<div class="scroll" role="region" tabindex="0" aria-labelledby="caption-{name}"><table aria-labelledby="caption-{name}">'
            f"<thead>{head}<tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>{notes}</figure>"
        )

    def _html_cell(self, index: int, cell: Cell) -> str:
        inner = f"<b>{escape(cell.text)}</b>" if cell.bold else escape(cell.text)
        if cell.swatch:
            inner = f'<i class="swatch" style="background:{cell.swatch}" aria-hidden="true"></i>{inner}'
        if cell.picture:
            inner = f'<span class="named">{as_html(cell.picture)}<span>{inner}</span></span>'
        if cell.detail:
            inner += f' <span class="ci">{escape(cell.detail)}</span>'
        order = "" if cell.sort is None else f' data-sort="{escape(str(cell.sort))}"'
        if index == 0:
            return f'<th scope="row"{order}{_title(cell.title)}>{inner}</th>'
        return f"<td{_class('num' if self.columns[index].numeric else '')}{order}{_title(cell.title)}>{inner}</td>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _title(text: str) -> str:
    return f' title="{escape(text)}"' if text else ""


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _inline(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def _pipes(cells: Sequence[str], raw: bool = False) -> str:
    return "| " + " | ".join(cells if raw else [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]) + " |"


def _tex_cell(cell: Cell, stacked: bool) -> str:
    text = rf"\textbf{{{tex(cell.text)}}}" if cell.bold else tex(cell.text)
    if not cell.detail:
        return text
    detail = rf"{{\tiny {tex(cell.detail)}}}" if stacked else rf"{{\scriptsize {tex(cell.detail)}}}"
    return rf"\shortstack[r]{{{text}\\{detail}}}" if stacked else f"{text} {detail}"


def _stacked(text: str, width: int, align: str) -> str:
    """`text` in lines of at most `width` characters where it is longer, one upon the other: no package needed."""
    lines = textwrap.wrap(text, width, break_long_words=False) or [""]
    if len(lines) == 1:
        return _first(text)
    return rf"\shortstack[{align}]{{{(chr(92) * 2).join(map(_first, lines))}}}"


def _first(text: str) -> str:
    r"""`text` escaped to stand first in a row: after \\ a bracket or a star would be read as an option of the line break."""
    return f"{{}}{tex(text)}" if text.startswith(("[", "*")) else tex(text)


def _stacked_cell(cell: Cell) -> str:
    """The first cell of a row, wrapped if long, its remark below it."""
    lines = textwrap.wrap(cell.text, 20, break_long_words=False) or [""]
    shown = [rf"\textbf{{{tex(line)}}}" if cell.bold else _first(line) for line in lines]
    shown += [rf"{{\scriptsize {tex(line)}}}" for line in textwrap.wrap(cell.detail, 26)] if cell.detail else []
    return shown[0] if len(shown) == 1 else rf"\shortstack[l]{{{(chr(92) * 2).join(shown)}}}"
