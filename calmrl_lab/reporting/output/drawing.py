"""Figures as SVG with text as text, PDF, and inline SVG in the colours of the page; the same figure always gives the same bytes."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calmrl_lab.reporting.output.palette import INKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_STYLE = Path(__file__).with_name("calmrl.mplstyle")
# Inches: the text of a paper, or a card of the page, which shows it up to 1.4 times as large; and a telephone. No text is below 9 points (12 pixels).
WIDE, NARROW = 8.4, 3.4
_LARGEST = 1.4
_PAGE_COLOURS = {
    "#20242b": "--ink",
    "#565e6a": "--soft",
    "#8b929c": "--axis",
    "#e3e6ea": "--grid",
    "#ffffff": "--paper",
    "#d8dde4": "--band",
}
BAND = "#d8dde4"
AXIS = "#8b929c"
INK = "#20242b"
_SOFT = "#565e6a"
# The line at the foot of a figure, in points, and how many of its characters fit.
_FOOT, _FOOT_WIDE, _FOOT_NARROW = 9.0, 108, 44


@dataclass
class Drawing:
    """A drawn figure and the words that show when the mouse rests on one of its marks (by the id of the mark)."""

    canvas: Canvas
    titles: dict[str, str] = field(default_factory=dict)

    def label(self, artist: Any, words: str) -> None:
        """Give `artist` the hover text `words`."""
        name = f"mark-{len(self.titles)}"
        artist.set_gid(name)
        self.titles[name] = words


@dataclass(frozen=True)
class Figure:
    """A figure of the report: `draw(narrow)` draws it for a column of a paper or for a telephone; `description` says what it shows; `basis`
    (how many items and seeds, what bars are) stands at the foot of the drawing itself, so that it is not lost where the caption is;
    `reading` says how to read it, in two lines."""

    name: str
    title: str
    caption: str
    description: str
    draw: Callable[[bool], Drawing]
    basis: str = ""
    reading: str = ""
    _drawn: dict[bool, str] = field(default_factory=dict, repr=False, compare=False)

    def svg(self, narrow: bool = False) -> str:
        """A file of its own: text as text, hover values, no date, no machine-dependent ids."""
        if narrow not in self._drawn:
            with style():
                drawing = self._footed(narrow)
                out = io.StringIO()
                metadata = {"Date": None, "Creator": "calmrl-lab", "Title": self.title}
                drawing.canvas.savefig(out, format="svg", metadata=metadata)
            self._drawn[narrow] = _titled(_numbered(out.getvalue()), drawing.titles)
        return self._drawn[narrow]

    def pdf(self) -> bytes:
        """The same for a paper, fonts embedded as outlines that stay searchable."""
        with style():
            out = io.BytesIO()
            dates = {"CreationDate": None, "Creator": "calmrl-lab", "Producer": None, "Title": self.title}
            self._footed(False).canvas.savefig(out, format="pdf", metadata=dates)
        return out.getvalue()

    def _footed(self, narrow: bool) -> Drawing:
        drawing = self.draw(narrow)
        if self.basis:
            lines = textwrap.wrap(self.basis, _FOOT_NARROW if narrow else _FOOT_WIDE)
            width, height = drawing.canvas.get_size_inches()
            strip = (1.35 * _FOOT * len(lines) + 5) / 72
            drawing.canvas.set_size_inches(width, height + strip)
            share = strip / (height + strip)
            drawing.canvas.set_layout_engine("constrained", rect=(0, share, 1, 1 - share))
            drawing.canvas.text(
                0.005, 0.02 / (height + strip), "\n".join(lines), ha="left", va="bottom", fontsize=_FOOT, color=_SOFT
            )
        return drawing

    def inline(self, narrow: bool = False) -> str:
        """The SVG for a page: no header, ids of its own, colours and fonts those of the page."""
        text = self.svg(narrow)
        text = text[text.index("<svg") :]
        prefix = f"{self.name}{'-narrow' if narrow else ''}-"
        text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
        text = re.sub(r'\bid="', f'id="{prefix}', text)
        text = re.sub(r'(href="|url\()#', rf"\g<1>#{prefix}", text)
        text = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font: \g<1>px var(--figure-font)", text)
        for colour, variable in (*_PAGE_COLOURS.items(), *((ink.light, ink.variable) for ink in INKS)):
            text = text.replace(colour, f"var({variable})")
        width = re.search(r'<svg[^>]*?\swidth="([\d.]+)pt"', text)
        text = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
        size = f' style="max-width:{_LARGEST * float(width[1]) * 4 / 3:.0f}px"' if width else ""
        shown = "narrow" if narrow else "wide"
        return text.replace("<svg", f'<svg class="{shown}" role="img" aria-label="{escape(self.description)}"{size}', 1)


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures, for the time of one drawing; nothing global stays changed."""
    import matplotlib as mpl

    with mpl.rc_context(), mpl.rc_context(fname=str(_STYLE)):
        yield


def canvas(narrow: bool, height: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Canvas, Any]:
    """A figure without any global state, and its axes; on a telephone the panels stand under each other."""
    from matplotlib.figure import Figure as Canvas

    if narrow:
        rows, columns = rows * columns, 1
        if "width_ratios" in kwargs:
            kwargs["height_ratios"] = kwargs.pop("stacked", None)
            kwargs.pop("width_ratios")
    kwargs.pop("stacked", None)
    made = Canvas(figsize=(NARROW if narrow else WIDE, height))
    return made, made.subplots(rows, columns, squeeze=False, gridspec_kw={k: v for k, v in kwargs.items() if v is not None})


def panels(narrow: bool, height: float, rows: int, columns: int) -> tuple[Canvas, Any]:
    """Small multiples: `rows` x `columns` panels with common axes, as many beside each other as `columns` says; labels at the outer ones only."""
    from matplotlib.figure import Figure as Canvas

    made = Canvas(figsize=(NARROW if narrow else WIDE, height))
    return made, made.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)


def _numbered(svg: str) -> str:
    """Ids that are hashes of coordinates, as numbers in the order in which they appear: the last bit of a layout differs between processes."""
    found: dict[str, str] = {}
    return re.sub(r'(?<=["#])[a-zA-Z][0-9a-f]{10}(?=[")])', lambda hit: found.setdefault(hit[0], f"h{len(found)}"), svg)


def _titled(svg: str, titles: dict[str, str]) -> str:
    """Put a <title> into every marked group: browsers show it when the mouse rests there, screen readers read it."""
    for name, words in titles.items():
        svg = svg.replace(f'<g id="{name}">', f'<g id="{name}"><title>{escape(words)}</title>', 1)
    return svg
