"""NAME=VALUE words of a command line to dictionaries."""

from __future__ import annotations

from collections.abc import Sequence

from calmrl_lab.errors import CalmrlError


def assignments(option: str, words: Sequence[str]) -> dict[str, str]:
    """['vision=a.npy'] -> {'vision': 'a.npy'}; CalmrlError if a word has no '=' or a name comes twice."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or not value:
            raise CalmrlError(f"--{option} '{word}' is not of the form NAME=VALUE")
        if name in found:
            raise CalmrlError(f"--{option} names '{name}' twice")
        found[name] = value
    return found


def ids_options(words: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """The words of --ids: at most one plain FILE for all modalities, and NAME=FILE for single ones."""
    plain = [word for word in words if "=" not in word]
    if len(plain) > 1:
        raise CalmrlError(f"--ids is given twice for all modalities: {plain[0]} and {plain[1]}", hint="use --ids NAME=FILE")
    return (plain[0] if plain else None), assignments("ids", [word for word in words if "=" in word])
