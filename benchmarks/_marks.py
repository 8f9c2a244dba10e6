"""Measured numbers put where a Markdown page wants them: between `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""

from __future__ import annotations

from pathlib import Path

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime.atomic_files import write_atomically


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of `name` in `path`. Raises CalmrlError if the page has no such marks."""
    begin, end = (f"<!-- {name}: {which} -->" for which in ("begin", "end"))
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise CalmrlError(f"'{path}' has no marks '{begin}' and '{end}'", hint="put both where the numbers are to stand")
    write_atomically(path, f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}".encode())
