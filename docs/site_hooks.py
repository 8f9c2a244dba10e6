"""What the site has besides the pages in this folder: the tutorial as a page, the reference of the commands, and the files that pages link to."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from other things."""
    files.append(File.generated(config, "tutorial.md", content=tutorial()))
    files.append(File.generated(config, "commands.md", content=commands()))
    files.append(File.generated(config, "settings.md", content=settings()))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Links out of this folder (an experiment file, a module) lead to a copy in the site; one to nowhere stays, and fails the build."""
    folder = posixpath.dirname(page.file.src_uri)

    def copied(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, found[1]))
        source = ROOT / target
        if target.startswith("docs/") or not source.is_file():
            return found[0]
        uri = f"files/{target}"
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(source)))
        return f"]({posixpath.relpath(uri, folder or '.')})"

    # In a folder of files the tutorial is the notebook, on the site it is a page.
    found = (
        markdown
        if page.file.src_uri == "tutorial.md"
        else markdown.replace("[tutorial.ipynb](tutorial.ipynb)", "[Tutorial](tutorial.md)")
    )
    return _LINK.sub(copied, found)


def tutorial() -> str:
    """The notebook as a page."""
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    parts = ["".join(c["source"]) if c["cell_type"] == "markdown" else f"```python\n{''.join(c['source'])}\n```" for c in cells]
    return "\n\n".join([*parts, "The same as a notebook: [tutorial.ipynb](tutorial.ipynb).\n"])


def commands() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    import typer

    from calmrl_lab.cli import app

    lines = ["# Commands", "", "What `calmrl-lab COMMAND --help` says."]
    for name, command in _leaves(typer.main.get_command(app), "calmrl-lab"):
        paragraphs = re.sub(r"\s*\n\s*", " ", (command.help or "").replace("\n\n", "\0")).replace("\0", "\n\n")
        lines += ["", f"## `{name}`", "", re.sub(r"Example: (.+)", r"Example: `\1`", paragraphs), ""]
        rows = [
            _row(parameter)
            for parameter in command.params
            if not getattr(parameter, "hidden", False) and parameter.name != "help"
        ]
        lines += ["| argument or option | meaning |", "|---|---|", *rows] if rows else []
    return "\n".join(lines) + "\n"


def settings() -> str:
    """Every setting of training with its default, as `--set name=value` and method files take them."""
    from calmrl_lab.config import TrainConfig

    lines = [
        "# Settings of training",
        "",
        "`--set NAME=VALUE`, method files, and keywords of `train_heads`; a method has defaults of its own.",
        "",
    ]
    lines += ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in TrainConfig.model_fields.items():
        default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
        lines.append(f"| `{name}` | {default} | {_cell(field.description or '')} |")
    return "\n".join(lines) + "\n"


def _leaves(command: Any, name: str) -> list[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        return [(name, command)]
    return [leaf for word, inner in command.commands.items() if not inner.hidden for leaf in _leaves(inner, f"{name} {word}")]


def _row(parameter: Any) -> str:
    spelled = ", ".join(parameter.opts) if parameter.param_type_name == "option" else parameter.name.upper()
    return f"| `{spelled}` | {_cell(getattr(parameter, 'help', '') or '')} |"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")
