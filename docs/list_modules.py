"""Writes the list of modules in docs/architecture.md from their docstrings: python docs/list_modules.py (a test says when to)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parent
ARCHITECTURE = DOCS / "architecture.md"
# Folders whose files `calmrl-lab list` or `calmrl-lab --help` shows.
_PLUG_INS = ("objectives", "imputers", "scorers", "encoders", "datasets", "commands")
_MARKS = ("<!-- modules: begin -->", "<!-- modules: end -->")


def architecture() -> str:
    """The text of docs/architecture.md with its list of modules made anew."""
    before, _, rest = ARCHITECTURE.read_text(encoding="utf-8").partition(_MARKS[0])
    _, _, after = rest.partition(_MARKS[1])
    return f"{before}{_MARKS[0]}\n\n{modules()}\n\n{_MARKS[1]}{after}"


def modules() -> str:
    """Both packages as a nested list: what the docstring of each folder and of each module in it says first."""
    lines = []
    for package in ("calmrl_lab", "feature_extractors"):
        lines += ["", f"**{package}/**", "", *_listed(DOCS.parent / package, "")]
    return "\n".join(lines).strip()


def _listed(folder: Path, indent: str) -> Iterator[str]:
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        source = path if path.suffix == ".py" else path / "__init__.py"
        if not source.is_file() or path.name.startswith("_"):
            continue
        said = (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        yield f"{indent}* `{path.name if path.is_file() else f'{path.name}/'}`: {' '.join(said.split())}"
        if path.is_dir() and path.name not in _PLUG_INS:
            yield from _listed(path, f"{indent}  ")


if __name__ == "__main__":
    ARCHITECTURE.write_text(architecture(), encoding="utf-8")
    print(f"written to {ARCHITECTURE}")
