"""The layers of the packages: imports run down, and a folder holds one idea."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Folders of plug-ins, where every file is one thing of a kind.
PLUG_INS = {"objectives", "imputers", "scorers", "encoders", "datasets", "commands", "methods"}
MOST_FILES = 13

pytest.importorskip("importlinter", reason="import-linter is part of the extra 'test'")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(folder), "PATH": "", "HOME": str(folder)}
    )


@pytest.fixture
def copy(tmp_path):
    """A copy of both packages and of the contracts, to be spoiled."""
    for package in ("calmrl_lab", "feature_extractors"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("calmrl_lab/linalg/spectrum.py", "import calmrl_lab.training.train", "Imports run down"),
        ("calmrl_lab/store/reader.py", "def late():\n    from calmrl_lab.runs import run", "Imports run down"),
        ("calmrl_lab/evaluation/evaluate.py", "import feature_extractors.extraction", "works on cached features"),
        ("feature_extractors/extraction.py", "import calmrl_lab.training.train", "feature_extractors needs"),
    ],
)
def test_a_forbidden_import_is_refused(copy, file, line, contract):
    with open(copy / file, "a", encoding="utf-8") as module:
        module.write(f"\n{line}\n")
    done = lint(copy)
    assert done.returncode != 0
    assert contract in " ".join(done.stdout.split())


def test_a_folder_holds_at_most_about_twelve_files():
    folders = [
        folder for package in ("calmrl_lab", "feature_extractors") for folder in (ROOT / package).rglob("*") if folder.is_dir()
    ]
    counts = {
        str(folder.relative_to(ROOT)): len([*folder.glob("*.py")]) - 1 for folder in folders if folder.name not in PLUG_INS
    }
    assert {name: count for name, count in counts.items() if count > MOST_FILES} == {}
