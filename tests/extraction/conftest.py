"""The fake dataset and encoder of `fakes.py`, installed as a foreign package so that worker processes find them too."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Makes `--dataset fake` known here and in worker processes; returns a function that sets the texts."""
    site = tmp_path / "site"
    info = site / "fakes-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("fakes.py"), site / "extraction_fakes.py")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fakes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[calmrl_lab.datasets]\nfake = extraction_fakes:FakeDataset\n[calmrl_lab.encoders]\nfake = extraction_fakes:FakeEncoder\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    sys.modules.pop("extraction_fakes", None)
    from feature_extractors.datasets import datasets
    from feature_extractors.encoders import encoders

    for registry in (datasets, encoders):
        registry._entries.pop("fake", None)
        registry._loaded = False

    def texts(*values):
        monkeypatch.setenv("FAKE_TEXTS", json.dumps(values))

    texts(*(f"text{i}" for i in range(30)))
    yield texts
    for registry in (datasets, encoders):
        registry._entries.pop("fake", None)
        registry._loaded = False


@pytest.fixture
def notes(tmp_path):
    """Writes the files of the second modality; returns their folder."""
    folder = tmp_path / "media"
    folder.mkdir()

    def write(*texts):
        for number, text in enumerate(texts):
            (folder / f"{number}.txt").write_text(text)
        return folder

    return write
