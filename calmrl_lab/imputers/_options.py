"""Options of imputers as they come from a command line or a file: numbers of the right kind, or one sentence."""

from __future__ import annotations

import operator
from typing import Any

from calmrl_lab.errors import CalmrlError


def whole(value: Any, name: str, least: int) -> int:
    """`value` as a whole number of at least `least`; 3.0 is one, True is none. Raises CalmrlError."""
    try:
        found = operator.index(value)
    except TypeError:
        found = int(value) if isinstance(value, float) and value.is_integer() else least - 1
    if isinstance(value, bool) or found < least:
        raise CalmrlError(f"{name} is {value!r}, expected a whole number of at least {least}")
    return found


def number(value: Any, name: str, unit: str = "", above: bool = False, below: float = float("inf")) -> float:
    """`value` as a finite number of at least 0 (above 0 with `above`) and less than `below`. Raises CalmrlError."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not known or not 0 <= value < below or (above and value == 0):
        least = "above 0" if above else "of at least 0"
        most = f" and below {below:g}" if below < float("inf") else ""
        raise CalmrlError(f"{name} is {value!r}, expected a number {unit}{least}{most}")
    return float(value)


def flag(value: Any, name: str) -> bool:
    """`value` as true or false. Raises CalmrlError."""
    if not isinstance(value, bool):
        raise CalmrlError(f"{name} is {value!r}, expected true or false")
    return value
