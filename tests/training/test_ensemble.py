"""Ensembles: the joined cosine is the weighted mean of the members' cosines, weights come from validation, members resume."""

import pytest
import torch

from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.evaluate import evaluate
from calmrl_lab.evaluation.run_items import open_run
from calmrl_lab.model.joined import JoinedHeads
from calmrl_lab.model.projection import Heads
from calmrl_lab.model.selection import BESIDE_COSINE, BESIDE_LIKELIHOOD_RATIO
from calmrl_lab.runs.run import Run
from calmrl_lab.training.train import train

DIMS = {"a": 7, "b": 5}
RATIO = {"similarity": "likelihood-ratio"}
CLOSED = {
    "objective": "none",
    "init": "ppca",
    "init_options": {"latent_dim": 24, "components": 60, "whitening": 0.5, "iterations": 6, "noise_scale": 4.0},
}


def config(store, **changes):
    values = {
        "store": str(store), "modalities": ["vision", "caption", "subtitle"], "scenario": "pairs:0.25", "impute": "none", "objective": "clip",
        "dim": 16, "epochs": 3, "members": [CLOSED, {"learning_rate": 0.003}],
    }  # fmt: skip
    return TrainConfig(**{**values, **changes})


def test_the_joined_cosine_is_the_weighted_mean_of_the_cosines():
    parts = [Heads(DIMS, 4, seed=0), Heads(DIMS, 6, "mlp", seed=1)]
    joined = JoinedHeads(parts, [1.0, 3.0])
    a, b = torch.randn(8, 7), torch.randn(9, 5)
    both = [torch.cat([x, x], dim=1) for x in (a, b)]
    found = joined.project(0, both[0]) @ joined.project(1, both[1]).T
    cosines = [part.project(0, a) @ part.project(1, b).T for part in parts]
    assert torch.allclose(found, 0.25 * cosines[0] + 0.75 * cosines[1], atol=1e-6)
    assert torch.allclose(joined.project(0, both[0]).norm(dim=1), torch.ones(8), atol=1e-6)
    assert joined.dim == joined.project(0, both[0]).shape[1] == 10
    assert joined.inputs == [14, 10]


@pytest.mark.parametrize(
    ("parts", "weights", "said"),
    [
        ([Heads(DIMS, 4)], [1.0], "at least two heads"),
        ([Heads(DIMS, 4), Heads(DIMS, 4)], [1.0, 0.0], "positive weight"),
        ([Heads(DIMS, 4), Heads({"a": 7, "c": 5}, 4)], [1.0, 1.0], "cannot be joined"),
    ],
)
def test_what_cannot_be_joined_is_refused(parts, weights, said):
    with pytest.raises(CalmrlError, match=said):
        JoinedHeads(parts, weights)


def test_an_ensemble_trains_its_members_and_keeps_them(small_store, tmp_path):
    run = train(config(small_store), tmp_path / "run")
    members = [Run.open(tmp_path / "run" / "members" / str(i)) for i in range(2)]
    assert [member.config.objective for member in members] == ["none", "clip"]
    assert members[1].config.learning_rate == 0.003
    assert run.summary["dim"] == 24 + 16
    assert run.summary["weights"][0] == 1.0
    assert run.summary["weights"][1] in BESIDE_COSINE
    alone = [member.summary["validation_mrr"] for member in members]
    assert run.summary["validation_mrr"] > min(alone)
    _, model, items = open_run(run)
    held_out = items.of("validation")
    joined, apart = (model.embed(held_out), [member.model().embed(held_out) for member in members])
    assert joined.items.shape[2] == 40
    weights = [weight / sum(run.summary["weights"]) for weight in run.summary["weights"]]
    cosines = [w * (part.items[:, 0] @ part.items[:, 1].T) for w, part in zip(weights, apart, strict=True)]
    assert torch.allclose(joined.items[:, 0] @ joined.items[:, 1].T, sum(cosines), atol=1e-5)
    assert len(evaluate(run).table()) == 6
    # An ensemble that was killed before its members were joined takes them as they are.
    (run.path / "summary.json").unlink()
    stamps = [(member.path / "summary.json").stat().st_mtime_ns for member in members]
    again = train(config(small_store), tmp_path / "run", resume=True)
    assert stamps == [(member.path / "summary.json").stat().st_mtime_ns for member in members]
    assert again.summary["validation_mrr"] == run.summary["validation_mrr"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"members": [CLOSED]}, "at least two members"),
        ({"members": [CLOSED, {"store": "x"}]}, "member 2: 'store' is that of the whole run"),
        ({"members": [CLOSED, {"seed": 1}]}, "member 2: 'seed' is that of the whole run"),
        ({"members": [CLOSED, {"scenario": "full"}]}, "member 2: 'scenario' is that of the whole run"),
        ({"members": [CLOSED, {"epoch": 3}]}, "member 2: epoch: unknown key"),
        ({"similarity": "likelihood-ratio"}, "similarity 'likelihood-ratio' adds cosines; compared otherwise are no members"),
        ({"similarity": "sum"}, "adds cosines to the likelihood ratio of one member; compared otherwise are no members"),
        ({"members": [{**CLOSED, **RATIO}, {}]}, "similarity 'cosine' adds cosines; compared otherwise are member 1"),
        ({"similarity": "sum", "members": [{**CLOSED, "similarity": "sum"}, {}]}, "compared otherwise are member 1"),
        ({"similarity": "sum", "members": [{**CLOSED, **RATIO}] * 2}, "compared otherwise are member 1, member 2"),
        ({"risk_control": True}, "and no gate"),
    ],
)
def test_ensembles_that_make_no_sense_are_refused(small_store, tmp_path, changes, said):
    with pytest.raises(CalmrlError, match=said):
        train(config(small_store, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("others", [1, 2])
def test_members_compared_by_cosine_are_added_to_the_likelihood_ratio_of_one(small_store, tmp_path, others):
    members = [{**CLOSED, **RATIO}, *[{"learning_rate": 0.001 * (i + 1)} for i in range(others)]]
    run = train(config(small_store, members=members, similarity="sum"), tmp_path / "run")
    assert len(run.summary["weights"]) == others
    assert set(run.summary["weights"]) <= set(BESIDE_LIKELIHOOD_RATIO)
    assert run.summary["cosine_weight"] == sum(run.summary["weights"])
    assert run.summary["dim"] == 16 * others
    scored = evaluate(run)
    assert set(scored.scores["scorer"]) == {"sum"}
    ratio = evaluate(run, similarity="likelihood-ratio").table()["recall_at_10"].mean()
    assert scored.table()["recall_at_10"].mean() > 0.9 * ratio


@pytest.mark.slow
def test_the_command_line_takes_members(small_store, tmp_path, cli):
    members = "members=[{objective: none, init: ppca, init_options: {latent_dim: 24, components: 60}}, {objective: clip}]"
    words = (
        "train-heads",
        "--store",
        small_store,
        "--scenario",
        "pairs:0.25",
        "--method",
        "ensemble",
        "--epochs",
        "1",
    )
    code, out, err = cli(*words, "--set", members, "--run", tmp_path / "run")
    assert code == 0, err
    assert "ensemble" in out
    assert cli("evaluate", "--run", tmp_path / "run", "--direction", "caption:vision")[0] == 0
