"""One colour and one marker per method, the same in every figure and table of every report.

The hues are those of Okabe and Ito, told apart under the common colour-vision deficiencies, darkened until they stand out on white
(3:1); each has a lighter twin for dark pages. Markers differ too, so that nothing hangs on colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from calmrl_lab.reporting.results.collect import Method


class Ink(NamedTuple):
    """A colour on white, its twin on dark, and a matplotlib marker."""

    light: str
    dark: str
    marker: str

    @property
    def variable(self) -> str:
        """The CSS variable that holds this colour in both schemes."""
        return f"--c{self.light[1:].lower()}"


BLUE = Ink("#0067a5", "#5fb3e8", "s")
VERMILLION = Ink("#d1500a", "#ff8a4c", "o")
GREEN = Ink("#008562", "#35c79d", "D")
PURPLE = Ink("#b0568d", "#e59cc8", "P")
OCHRE = Ink("#a87400", "#e6b422", "^")
SKY = Ink("#3088c0", "#8fd0f5", "v")
GREY = Ink("#757575", "#a3a3a3", "X")
BLACK = Ink("#30343b", "#d5d9e0", "*")
OLIVE = Ink("#6f7d1c", "#bccb5a", "<")
WINE = Ink("#8f2d56", "#f08bb0", ">")
TEAL = Ink("#177e89", "#63cdd8", "h")
INKS = (BLUE, VERMILLION, GREEN, PURPLE, OCHRE, SKY, GREY, BLACK, OLIVE, WINE, TEAL)
_MARKERS = ("p", "H", "d", "8", "|")
_SPARE = (PURPLE, OLIVE, TEAL, WINE, SKY, OCHRE, GREEN)

_IMPUTERS = {"ppca": VERMILLION, "mean": OCHRE, "random": GREY, "zero": BLACK, "ridge": BLUE, "knn": GREEN}
_OBJECTIVES = {"pmrl": BLUE, "clip": GREEN, "gram": PURPLE, "triangle": WINE, "vast": TEAL, "imagebind": OLIVE}


def inks(methods: Sequence[Method]) -> dict[str, Ink]:
    """Colour by method name: by what the method is where that is known, else the first spare ones in order. For up to 66 methods."""
    found: dict[str, Ink] = {}
    for method in methods:
        ink = _known(method)
        if ink is not None and ink not in found.values():
            found[method.name] = ink
    spare = list(dict.fromkeys(ink for ink in (*_SPARE, *INKS) if ink not in found.values()))
    # More methods than colours: the colours come again with other markers.
    spare += [ink._replace(marker=marker) for marker in _MARKERS for ink in INKS]
    for method in methods:
        if method.name not in found:
            found[method.name] = spare.pop(0)
    return {method.name: found[method.name] for method in methods}


def imputer_ink(name: str) -> Ink:
    """Colour of an imputer: that of the method calibrated with it."""
    return _IMPUTERS.get(name) or _SPARE[sum(name.encode()) % len(_SPARE)]


def _known(method: Method) -> Ink | None:
    if method.role == "oracle":
        return BLACK
    if "complete-only" in method.scenario:
        return SKY
    if method.imputer != "none":
        return _IMPUTERS.get(method.imputer)
    return _OBJECTIVES.get(method.objective)
