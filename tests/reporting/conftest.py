"""One invented experiment and its report, made once."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from synthetic_runs import write_experiment


@pytest.fixture(scope="session")
def experiment(tmp_path_factory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("runs") / "demo", seeds=(0, 1), items=120, extras=True)


@pytest.fixture(scope="session")
def report(experiment, tmp_path_factory):
    from calmrl_lab.reporting import write_report

    return write_report(experiment, tmp_path_factory.mktemp("reports") / "demo")


@pytest.fixture
def without_pdf(monkeypatch):
    """Leaves out the slowest step, the embedding of fonts, where a test is about something else."""
    from calmrl_lab.reporting.output.drawing import Figure

    monkeypatch.setattr(Figure, "pdf", lambda self: b"%PDF")
