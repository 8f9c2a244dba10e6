"""Examples in docstrings (`>>> ...`) as blocks of code on the pages of the site: Markdown would take them for quotations."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^[ \t]*>>> .*\n?(?:^[ \t]*\S.*\n?)*\n?)+", re.MULTILINE)


class DoctestBlocks(griffe.Extension):
    """Puts a fence around every run of examples."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of `obj`, if it has one."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n\n", obj.docstring.value)
