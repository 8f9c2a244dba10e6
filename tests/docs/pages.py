"""Documentation pages as programs: their fenced blocks, in order, run in a folder of their own.

How a block is marked, by its language and by a comment on the line before it, which no reader of the page sees:

    ```console                lines that start with `$ ` are run; a shown line `error: ...` says that the command must fail so
    ```sh                     every line is a command (for blocks that people copy)
    ```python                 run, one namespace a page
    <!-- slow -->             the same, but the page belongs to the slow tests
    <!-- thin weights -->     the same, over clips and a release of random weights that are made for it
    <!-- file=NAME -->        written to NAME before anything runs
    <!-- not run: WHY -->     not run; the command lines in it must still parse, and WHY is one of `REASONS`
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
REASONS = (
    "installs a package",
    "needs the weights of ImageBind or LanguageBind",
    "needs the clips of a dataset",
    "needs several machines or GPUs",
    "takes minutes",
    "opens a window",
    "a sketch",
)
THIN = "thin weights"
_FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?(?P<fence>```+)(?P<language>\w*)[ \t]*\n(?P<text>.*?)^(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block: where it starts, its language, its mark, what is in it."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def reason(self) -> str | None:
        return self.mark.removeprefix("not run: ") if self.mark.startswith("not run: ") else None

    @property
    def file(self) -> str | None:
        return self.mark.removeprefix("file=") if self.mark.startswith("file=") else None

    def commands(self) -> list[tuple[str, str]]:
        """(command, shown output) of the lines that are commands; a trailing backslash joins lines."""
        found: list[list[str]] = []
        for line in self.text.replace("\\\n", " ").splitlines():
            if self.language == "sh":
                found += [[line.strip()]] if line.strip() and not line.startswith("#") else []
            elif line.startswith("$ "):
                found.append([line[2:].strip()])
            elif found:
                found[-1].append(line)
        return [(words[0], "\n".join(words[1:])) for words in found]


def script(path: str) -> ModuleType:
    """A script of the repository as a module; `path` is relative to its root."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages() -> list[Path]:
    """README.md and every Markdown page below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: m.start("fence")].count("\n") + 1, m["language"], m["mark"] or "", m["text"])
        for m in _FENCE.finditer(text)
    ]


def is_run(block: Block) -> bool:
    return block.reason is None and block.file is None and block.language in ("console", "sh", "python")


def words_of(command: str) -> list[str] | None:
    """The words of a `calmrl-lab` command line, without a comment; None for any other program."""
    words = shlex.split(command, comments=True)
    return words[1:] if words and words[0] == "calmrl-lab" else None


def furnish(folder: Path, page: Path) -> None:
    """What a page may take for granted: stores/openmoji.zarr (the small store stands in), experiments/, files of features, its own files."""
    import numpy as np
    import pandas as pd

    from calmrl_lab.store import FeatureStore

    small = ROOT / "tests" / "data" / "openmoji-small.zarr"
    shutil.copytree(small, folder / "stores" / "openmoji.zarr")
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    store = FeatureStore.open(small)
    vision, caption = (store.features(name).astype(np.float32) for name in ("vision", "caption"))
    gappy = vision.copy()
    gappy[::3] = np.nan
    np.save(folder / "vision.npy", gappy)
    pd.DataFrame({"id": store.ids[:250], "feature": list(caption[:250])}).to_parquet(folder / "text.parquet")
    (folder / "ids.txt").write_text("\n".join(store.ids) + "\n", encoding="utf-8")
    if any(block.mark == THIN for block in blocks(page)):
        from docs.thin_data import write_thin_data

        write_thin_data(folder)
    for block in blocks(page):
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    if (folder / "pyproject.toml").exists():
        install(folder)


def install(folder: Path) -> None:
    """What `pip install -e .` leaves behind, as far as entry points go; the folder itself must be on the path."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def shell(command: str) -> tuple[int, str, str]:
    """Run another program than calmrl-lab through the shell."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300, env=os.environ)
    return done.returncode, done.stdout, done.stderr
