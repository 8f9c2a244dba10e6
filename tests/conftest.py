"""Fixtures that all rooms share."""

import sys
from pathlib import Path

import pytest

# Test helpers live beside the tests and are imported by spawned workers too.
sys.path.insert(0, str(Path(__file__).parent))

SMALL_STORE = Path(__file__).parent / "data" / "openmoji-small.zarr"


@pytest.fixture(scope="session")
def small_store() -> Path:
    """The committed store: real features of a few hundred emoji."""
    return SMALL_STORE


@pytest.fixture
def cli(monkeypatch, capfd):
    """Run the real command line in this process: cli("store", "info", path) -> (exit code, stdout, stderr)."""
    from calmrl_lab.cli import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["calmrl-lab", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run
