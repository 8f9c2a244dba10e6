"""One invented experiment and its report, made once."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from synthetic_runs import write_experiment


@pytest.fixture(scope="session")
def experiment(tmp_path_factory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("runs") / "demo", items=120, extras=True)


@pytest.fixture(scope="session")
def report(experiment, tmp_path_factory):
    from calmrl_lab.reporting import write_report

    return write_report(experiment, tmp_path_factory.mktemp("reports") / "demo")
