"""An objective from another package: listed, trained, evaluated and reported without an edit here."""

import importlib
import json
import sys

import pytest
import torch

PACKAGE = '''
"""Pull every observed modality to the mean of the observed ones."""
import torch


class Huddle(torch.nn.Module):
    """Squared distance to the centroid, from outside."""

    def __init__(self, modalities, dim, weight=1.0):
        super().__init__()
        self.weight = weight

    def forward(self, embeddings, mask, imputed=None):
        shown = embeddings.masked_fill(~mask.unsqueeze(-1), 0.0)
        centre = shown.sum(1, keepdim=True) / mask.sum(1).clamp_min(1)[:, None, None]
        distance = ((shown - centre).square().sum(-1) * mask).sum() / mask.sum().clamp_min(1)
        apart = (centre.squeeze(1) @ centre.squeeze(1).mT / 0.1).logsumexp(1).mean()
        return {"loss": self.weight * distance + apart, "distance": distance, "apart": apart}
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    (tmp_path / "huddle_pkg.py").write_text(PACKAGE)
    info = tmp_path / "huddle_pkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: huddle-pkg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[calmrl_lab.objectives]\nhuddle = huddle_pkg:Huddle\n")
    registry = importlib.import_module("calmrl_lab.objectives").objectives
    # Loaded before the plug-in is on the path, so that what is put back in the end is complete and without it.
    registry.names()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_loaded", False)
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    yield registry
    sys.modules.pop("huddle_pkg", None)


@pytest.mark.slow
def test_it_is_listed_trained_evaluated_and_reported(installed, small_store, tmp_path, cli):
    code, out, _ = cli("list", "objectives", "--json")
    assert code == 0
    assert json.loads(out)["huddle"] == "Squared distance to the centroid, from outside."
    run = tmp_path / "runs" / "huddle"
    quick = ["--set", "epochs=2", "--set", "dim=16", "--set", "objective_options.weight=2"]
    asked = ["--store", small_store, "--objective", "huddle", "--impute", "none", "--scenario", "pairs", "--run", run, *quick]
    assert cli("train-heads", *asked)[0] == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"distance", "apart", "loss"} <= lines[-1].keys()
    assert cli("evaluate", "--run", run)[0] == 0
    assert cli("report", "--runs", tmp_path / "runs", "--out", tmp_path / "report")[0] == 0
    assert "huddle" in (tmp_path / "report" / "tables" / "recall.csv").read_text()


def test_what_it_cannot_do_is_said_in_one_sentence(installed, small_store, tmp_path, cli, monkeypatch):
    asked = [
        "train-heads",
        "--store",
        small_store,
        "--objective",
        "huddle",
        "--impute",
        "none",
        "--set",
        "dim=16",
        "--set",
        "epochs=1",
    ]
    code, _, said = cli(*asked, "--set", "exclude_same_group=true", "--run", tmp_path / "r")
    assert code == 2
    assert "objective 'huddle' takes no groups" in said
    assert not (tmp_path / "r").exists()
    monkeypatch.setattr(installed.get("huddle"), "forward", lambda self, z, mask, imputed=None: {"cost": z.sum()})
    code, _, said = cli(*asked, "--run", tmp_path / "r")
    assert code == 2
    assert "objective 'huddle' gave no scalar called 'loss' (it gave: cost)" in said


def test_it_is_measured_like_any_other(installed):
    from calmrl_lab.training.gradient_health import term_gradients

    z = torch.nn.functional.normalize(torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    found = term_gradients(installed.get("huddle")(("a", "b"), 6), z, torch.ones(4, 2, dtype=torch.bool))
    assert set(found) == {"loss", "distance", "apart"}
