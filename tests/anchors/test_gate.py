"""The gate: opens where calibration promises something, keeps its harm rate on new items, and says what it did."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from calmrl_lab.anchors.bayes import calibration_gain, risk_controlling_threshold
from calmrl_lab.anchors.gate import Gate, realised_calibration_gain
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.evaluate import evaluate
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.objectives import objectives
from calmrl_lab.runs.run import Run
from calmrl_lab.training.train import train_heads

N, K, D, Q = 300, 4, 12, 4
QUICK = {"epochs": 2, "dim": 16, "batch_size": 64, "first_iterations": 5, "refresh_iterations": 2}
FOUR = ["vision", "audio", "caption", "subtitle"]


@pytest.fixture(scope="module")
def sets():
    """Unit embeddings with a common part (3 x N items), and a mask that shows two of four modalities or all."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(K, D, Q)) * 0.5 + rng.normal(size=(1, D, Q))
    z = np.einsum("kdq,nq->nkd", weights, rng.normal(size=(3 * N, Q))) + 2 * rng.normal(size=D) / D**0.5
    z = z + 1.2 * rng.normal(size=z.shape)
    z = torch.from_numpy(z / np.linalg.norm(z, axis=2, keepdims=True))
    shown = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1], [1, 1, 1, 1]], dtype=bool)
    mask = torch.from_numpy(shown[rng.choice(4, size=3 * N, p=[0.5, 0.2, 0.1, 0.2])])
    return z, mask


def fitted(sets, name="ppca", **options):
    z, mask = sets
    return imputers.get(name)(**options).fit(list(z[:N].unbind(1)), mask[:N])


def filled(imputer, z, mask):
    return torch.stack(imputer.impute(list(z.unbind(1)), mask), dim=1)


def gain_of(imputer, z, mask):
    return calibration_gain(imputer, z, mask, filled(imputer, z, mask), torch.Generator().manual_seed(0))


def test_the_predicted_gain_is_near_the_real_one_for_any_noise(sets):
    # Noise variances that are 8 times too large pull the filled values to the mean, and the promise follows.
    z, mask = sets[0][N:], sets[1][N:]
    gaps = ~mask.all(dim=1)
    for scale in (1.0, 8.0):
        imputer = fitted(sets, latent_dim=Q)
        imputer = PPCA.from_state({**imputer.state(), "noise": imputer.noise * scale})
        promised = gain_of(imputer, z, mask)
        real = realised_calibration_gain(z, mask, filled(imputer, z, mask))
        assert promised[~gaps].abs().max() == 0
        assert float(promised[gaps].mean()) == pytest.approx(float(real[gaps].mean()), rel=0.3)
        assert np.corrcoef(promised[gaps], real[gaps])[0, 1] > 0.3


def test_a_gain_does_not_depend_on_the_other_items(sets):
    imputer, (z, mask) = fitted(sets, latent_dim=Q), sets
    together = gain_of(imputer, z, mask)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(gain_of(imputer, z[order], mask[order]), together[order], rtol=0, atol=1e-12)
    torch.testing.assert_close(gain_of(imputer, z[5:9], mask[5:9]), together[5:9], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), [("ppca", {"latent_dim": Q}), ("random", {}), ("knn", {})])
def test_the_harm_rate_holds_on_new_items(sets, name, options):
    z, mask = sets
    imputer, gate = fitted(sets, name, **options), Gate(0.05)
    held, new = slice(N, 2 * N), slice(2 * N, 3 * N)
    logged = gate.set_on(imputer, list(z[held].unbind(1)), torch.ones_like(mask[held]), mask[:N])
    assert logged["gate_held_out_harm"] <= 0.05
    gaps = ~mask[new].all(dim=1)
    values = filled(imputer, z[new], mask[new])
    opened = gate.opens(imputer, z[new], mask[new], values)
    harmed = (opened & (realised_calibration_gain(z[new], mask[new], values) < 0))[gaps].double().mean()
    # Three standard errors of a rate of 5 % over some 240 items.
    assert harmed < 0.05 + 0.042
    assert bool(opened[~gaps].all())
    if name == "ppca":
        assert opened[gaps].double().mean() > 0.3
    if name == "random":
        assert opened[gaps].double().mean() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name in imputers.names() if imputers.get(name).fills))
def test_every_imputer_trains_heads_under_a_gate(small_store, tmp_path, name):
    small = {"latent_dim": 4} if name in ("ppca", "ppca-student", "ppca-mixture", "ppca-private") else {}
    small |= {"private_dim": 2} if name == "ppca-private" else {}
    run = train_heads(
        small_store,
        imputer=name,
        scenario="pairs:0.25",
        risk_control=True,
        run=tmp_path / "r",
        modalities=FOUR,
        impute_options=small,
        **QUICK,
    )
    told = run.summary["gate"]
    assert told["held_out_harm"] <= told["level"]
    assert 0 <= told["left_uncalibrated"] <= told["items_with_gaps"]
    # Zeros promise nothing to anyone; the paper's imputer is trusted with some items.
    if name == "zero":
        assert told["left_uncalibrated"] == told["items_with_gaps"]
    if name == "ppca":
        assert told["left_uncalibrated"] < told["items_with_gaps"]
    anchors = evaluate(run, device="cpu").coverage["gate"]
    assert anchors["scored"] > 0


def test_items_under_several_patterns_count_as_one():
    # Of 60 items, 20 are harmed at gain .5 under the frequent pattern (3/4), 20 others at gain .9 under the rare one.
    predicted, realised = np.tile([[0.5, 0.9]], (60, 1)), np.ones((60, 2))
    realised[:20, 0], realised[20:40, 1] = -1.0, -1.0
    shares = np.array([0.75, 0.25])
    # The mean loss is 20 / 60 / 4 = .083 above .5, and .33 above 0.
    assert risk_controlling_threshold(predicted, realised, 0.2, shares) == 0.5
    assert risk_controlling_threshold(predicted, realised, 0.5, shares) == 0.0


def test_an_item_left_uncalibrated_enters_with_what_it_shows(sets):
    z, mask = sets[0][:8], sets[1][:8]

    def loss(values, imputed):
        # A fresh one every time: the matching term draws its negatives.
        return objectives.get("calmrl")(tuple(FOUR), D)(values, mask, imputed)["loss"]

    imputed = z.flip(0).clone()
    shut = torch.where(mask.unsqueeze(2), imputed, torch.nan)
    assert loss(z, shut).item() == pytest.approx(loss(z, None).item(), rel=1e-9)
    assert loss(z, imputed).item() != pytest.approx(loss(z, None).item(), rel=1e-3)
    leaf = z.clone().requires_grad_()
    loss(leaf, shut).backward()
    assert bool(torch.isfinite(leaf.grad).all())


@pytest.fixture(scope="module")
def gated_run(small_store, tmp_path_factory):
    # Random imputation does harm, so that the gate has something to stop.
    return train_heads(
        small_store, imputer="random", scenario="pairs:0.25", risk_control=True, run=tmp_path_factory.mktemp("g") / "r",
        modalities=FOUR, **QUICK,
    )  # fmt: skip


def test_summary_and_anchors_say_what_the_gate_did(gated_run):
    summary = gated_run.summary["gate"]
    assert summary["level"] == 0.05
    assert 0 < summary["left_uncalibrated"] <= summary["items_with_gaps"] < gated_run.summary["counts"]["train_items"]
    assert 0 <= summary["held_out_harm"] <= 0.05
    scored = evaluate(gated_run, device="cpu")
    anchors = pd.read_parquet(gated_run.path / "anchors.parquet")
    shut = anchors[~anchors["calibrated"]]
    assert len(shut) > 0
    assert (shut["shift_calibrated"] == shut["shift_observed"]).all()
    assert (shut["predicted_gain"] <= summary["threshold"]).all()
    assert not shut["harmed"].any()
    told = json.loads((gated_run.path / "evaluation.json").read_text())["gate"]
    assert told == scored.coverage["gate"]
    assert (told["scored"], told["left_uncalibrated"]) == (len(anchors), len(shut))
    assert told["harm_rate"] < 0.15


def test_a_gated_run_resumes_bit_for_bit(small_store, tmp_path, stop_training):
    from calmrl_lab.config import TrainConfig
    from calmrl_lab.training.train import train

    asked = TrainConfig(
        store=str(small_store), modalities=FOUR, scenario="pairs:0.25", risk_control=True, objective="calmrl", impute="ppca", impute_options={"latent_dim": 4},
        **{**QUICK, "epochs": 3, "checkpoint_every": 1, "refresh": 2},
    )  # fmt: skip
    whole = train(asked, tmp_path / "whole")
    stop_training(asked, tmp_path / "halved", 1)
    halved = train(asked, tmp_path / "halved", resume=True)
    first, second = (run.read_tensors("model/model.safetensors")[0] for run in (whole, halved))
    assert all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_the_command_prints_the_gate(cli, small_store, tmp_path):
    asked = [
        "--store",
        small_store,
        "--method",
        "calmrl",
        "--modalities",
        ",".join(FOUR),
        "--scenario",
        "pairs:0.25",
        "--epochs",
        1,
    ]
    code, out, _ = cli("train-heads", *asked, "--risk-control", "--set", "dim=16", "--run", tmp_path / "r")
    assert code == 0
    assert "risk control:" in out
    assert Run.open(tmp_path / "r").config.risk_control
    code, out, _ = cli("evaluate", "--run", tmp_path / "r")
    assert code == 0
    assert "left uncalibrated" in out


def test_too_few_complete_validation_items_are_one_sentence(cli, small_store, tmp_path):
    with pytest.raises(CalmrlError, match=r"store 'a' has 0 \(at least 45 are needed"):
        Gate.refuse_unless_possible(torch.zeros(40, 3, dtype=torch.bool), 0.05, "a")
    asked = [
        "--store",
        small_store,
        "--method",
        "calmrl",
        "--modalities",
        ",".join(FOUR),
        "--risk-control",
        "--set",
        "risk_level=0.001",
    ]
    code, _, err = cli("train-heads", *asked, "--run", tmp_path / "r")
    assert code == 2
    assert "at least 2302 are needed" in err
    assert not (tmp_path / "r").exists()
