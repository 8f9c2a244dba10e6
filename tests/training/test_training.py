"""Training runs: repeatable, resumable bit for bit, stopped with a sentence when a loss is not finite."""

import io
import json

import numpy as np
import pytest
import torch

from calmrl_lab.config import TrainConfig
from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.runs.artifact_folder import digest
from calmrl_lab.runs.run import Run
from calmrl_lab.store import FeatureStore
from calmrl_lab.training.online_imputer import OnlineImputer
from calmrl_lab.training.optimiser import update
from calmrl_lab.training.session import Session
from calmrl_lab.training.train import train, train_heads

QUICK = {"epochs": 4, "dim": 16, "batch_size": 64, "first_iterations": 5, "refresh_iterations": 2, "checkpoint_every": 2}
CALMRL = {"objective": "calmrl", "impute": "ppca", "impute_options": {"latent_dim": 4}}
FOUR = ["vision", "audio", "caption", "subtitle"]


def config(store, **changes):
    values = {"store": str(store), "modalities": FOUR, "scenario": "pairs:0.25", **CALMRL, **QUICK}
    return TrainConfig(**{**values, **changes})


def tensors(run):
    return run.read_tensors("model/model.safetensors")[0]


def lines_of(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def same(first, second):
    assert first.keys() == second.keys()
    return all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("objective", [pytest.param("calmrl", marks=pytest.mark.slow), "clip"])
def test_the_same_seed_gives_the_same_numbers(small_store, tmp_path, objective):
    impute = "ppca" if objective == "calmrl" else "none"
    options = {"impute_options": {"latent_dim": 4} if impute == "ppca" else {}, "objective": objective, "impute": impute}
    runs = [train(config(small_store, **options), tmp_path / name) for name in "ab"]
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert (runs[0].path / name).read_bytes() == (runs[1].path / name).read_bytes(), name
    other = train(config(small_store, seed=1, **options), tmp_path / "c")
    assert not same(tensors(runs[0]), tensors(other))


@pytest.mark.parametrize("objective", ["calmrl", "pmrl"])
def test_a_resumed_run_equals_an_undisturbed_one(small_store, tmp_path, objective, stop_training):
    impute = "ppca" if objective == "calmrl" else "none"
    asked = config(
        small_store, objective=objective, impute=impute, impute_options={"latent_dim": 4} if impute == "ppca" else {}
    )
    whole = train(asked, tmp_path / "whole")

    stop_training(asked, tmp_path / "halved", 3)
    assert not Run.open(tmp_path / "halved").finished()
    halved = train(asked, tmp_path / "halved", resume=True)
    assert same(tensors(whole), tensors(halved))
    assert (whole.path / "metrics.jsonl").read_text() == (halved.path / "metrics.jsonl").read_text()
    if objective == "calmrl":
        assert same(whole.model().imputer.state(), halved.model().imputer.state())


def test_the_loss_falls_and_validation_rises(small_store, tmp_path):
    run = train(config(small_store, objective="clip", impute="none", impute_options={}, epochs=15), tmp_path / "r")
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[1]["loss"]
    assert run.summary["validation_mrr"] > 1.2 * lines[0]["validation_mrr"]


def test_training_stops_when_validation_stops_rising_and_keeps_the_best_heads(small_store, tmp_path):
    asked = config(small_store, objective="clip", impute="none", impute_options={}, epochs=30, patience=3, learning_rate=100)
    run = train(asked, tmp_path / "r")
    start = Session(asked, torch.device("cpu")).heads.state_dict()
    scores = [line["validation_mrr"] for line in lines_of(run)]
    best = scores.index(max(scores))
    assert run.summary["best_epoch"] == best
    assert run.summary["epochs"] == len(scores) - 1 == best + 3
    assert run.summary["validation_mrr"] == max(scores)
    # Steps of that size ruin everything: the start was best.
    kept = run.model().projection.state_dict()
    assert all(torch.equal(value, start[key]) for key, value in kept.items())


def test_the_learning_rate_rises_and_falls(small_store):
    session = Session(config(small_store, warm_up_share=0.1), torch.device("cpu"))
    paces = [session.learning_rate_factor(step, 40) for step in range(41)]
    assert paces[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert paces[4:] == pytest.approx([(40 - step) / 36 for step in range(4, 41)])
    sudden = Session(config(small_store, warm_up_share=0.0), torch.device("cpu"))
    assert sudden.learning_rate_factor(0, 40) == 1.0


def test_the_python_api_takes_an_unfitted_imputer(small_store, tmp_path):
    run = train_heads(small_store, imputer=PPCA(latent_dim=3), scenario="pairs", run=tmp_path / "r", modalities=FOUR, **QUICK)
    assert run.model().imputer.weights[0].shape == (16, 3)
    assert run.summary["counts"]["complete"] < run.summary["counts"]["train_items"]


def test_complete_only_trains_on_exactly_the_complete_items_of_pairs(small_store, tmp_path):
    pairs = Session(config(small_store), torch.device("cpu"))
    only = Session(config(small_store, scenario="pairs:0.25+complete-only"), torch.device("cpu"))
    complete = pairs.train_table.ids[pairs.train_table.mask.all(dim=1).numpy()]
    assert sorted(complete) == sorted(only.train_table.ids)


def test_a_loss_that_is_not_finite_stops_with_step_term_and_items(small_store, tmp_path):
    from calmrl_lab.objectives.clip import CLIP

    class NonFiniteStep(CLIP):
        def forward(self, embeddings, mask, imputed=None):
            terms = super().forward(embeddings, mask, imputed)
            return {name: value * float("nan") for name, value in terms.items()}

    asked = config(small_store, objective="clip", impute="none", impute_options={})
    session = Session(asked, torch.device("cpu"))
    session.objective = NonFiniteStep(tuple(FOUR), 16)
    with (
        Run.create(tmp_path / "r", asked) as run,
        pytest.raises(WorkFailedError, match=r"not finite at step 0 \(epoch 1, term .*items "),
    ):
        session.learn(run)
    assert not Run.open(tmp_path / "r").finished()


def test_the_last_good_checkpoint_outlives_a_broken_loss(small_store, tmp_path, monkeypatch):
    asked = config(small_store, objective="clip", impute="none", impute_options={}, epochs=4, checkpoint_every=1)
    whole = train(asked, tmp_path / "whole")
    original = Session._embedded

    def breaks(self, *arguments):
        batch = original(self, *arguments)
        return batch._replace(embeddings=batch.embeddings * (float("nan") if self.epoch == 2 else 1.0))

    monkeypatch.setattr(Session, "_embedded", breaks)
    steps = lines_of(whole)[2]["step"]
    with pytest.raises(WorkFailedError, match=rf"at step {steps} \(epoch 3, term loss; items "):
        train(asked, tmp_path / "broken")
    monkeypatch.setattr(Session, "_embedded", original)
    assert same(tensors(whole), tensors(train(asked, tmp_path / "broken", resume=True)))


def test_batches_without_a_valid_term_are_skipped_and_counted(small_store, tmp_path, capsys):
    plain = {"objective": "clip", "impute": "none", "impute_options": {}}
    # Complete items elsewhere decide the start, and no item of training has a partner.
    elsewhere = {"warm_up": str(small_store), "warm_up_epochs": 0}
    alone = config(small_store, **plain, **elsewhere, scenario="pattern:vision/audio/caption")
    run = train(alone, tmp_path / "alone")
    start = Session(alone, torch.device("cpu")).heads.state_dict()
    assert run.summary["counts"]["skipped_batches"] == lines_of(run)[-1]["step"]
    kept = run.model().projection.state_dict()
    assert all(torch.equal(value, start[key]) for key, value in kept.items())
    said = capsys.readouterr().err.replace("\n", " ")
    assert "objective 'clip' had nothing to teach in any of 12 batches" in said
    assert "temperature" not in said
    asked = config(small_store, objective="clip", impute="none", impute_options={}, epochs=1)
    session = Session(asked, torch.device("cpu"))
    session.objective.forward = lambda *batch: {"loss": torch.zeros(()), "skipped": torch.tensor(float(len(batch[0])))}
    with Run.create(tmp_path / "constant", asked) as constant:
        session.learn(constant)
    assert constant.summary["counts"]["skipped_batches"] == lines_of(constant)[-1]["step"] > 0
    pairs = train(asked, tmp_path / "pairs")
    assert pairs.summary["counts"]["skipped_batches"] == 0


def test_a_run_killed_at_its_first_file_can_be_made_again(small_store, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".config.yaml.tmp").write_text("half")
    with Run.create(tmp_path / "r", config(small_store)) as run:
        assert run.config == config(small_store)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with (
        pytest.raises(CalmrlError, match="holds 'thesis.tex', which belongs to no run"),
        Run.create(tmp_path / "other", config(small_store)),
    ):
        pass


def test_a_warm_up_store_is_replayed(small_store, tmp_path):
    run = train(
        config(small_store, warm_up=str(small_store), warm_up_epochs=2, scenario="pattern:vision+caption"), tmp_path / "r"
    )
    phases = [json.loads(line)["phase"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert phases[1:3] == ["warm-up", "warm-up"]
    assert phases[3] == "train"


def test_a_warm_up_on_some_items_leaves_the_others_to_training(small_store, tmp_path):
    from calmrl_lab.data.training_data import open_data

    shares = {"warm_up": str(small_store), "warm_up_scenario": "share:0.3", "scenario": "rest:0.3+pattern:vision+caption"}
    data = open_data(config(small_store, **shares), "cpu")
    first, rest = set(data.warm_up.ids), set(data.train.ids)
    assert first
    assert not first & rest
    assert bool(data.warm_up.mask.all())
    with pytest.raises(CalmrlError, match="no complete training item under scenario 'share:0'"):
        open_data(config(small_store, **{**shares, "warm_up_scenario": "share:0"}), "cpu")


@pytest.mark.parametrize("sees", ["all", "warm-up", "train"])
def test_the_imputer_sees_what_it_is_told_to(small_store, tmp_path, sees):
    shares = {"warm_up": str(small_store), "warm_up_scenario": "share:0.5", "warm_up_epochs": 0, "imputer_data": sees}
    session = Session(config(small_store, scenario="rest:0.5+pairs:0.25", **shares), torch.device("cpu"))
    seen = []
    original = session.filler.imputer.fit
    session.filler.imputer.fit = lambda e, mask, **k: seen.append(len(mask)) or original(e, mask, **k)
    session.filler.refresh(session.heads, session.train_table, 2)
    sizes = {"warm-up": len(session.data.warm_up), "train": len(session.train_table)}
    assert seen == [sum(sizes.values()) if sees == "all" else sizes[sees]]


def test_an_imputer_that_sees_a_warm_up_needs_one(small_store, tmp_path):
    with pytest.raises(CalmrlError, match="there is no warm-up store"):
        train(config(small_store, imputer_data="warm-up"), tmp_path / "r")


def test_any_objective_can_train_on_imputed_embeddings(small_store, tmp_path):
    plain = {"objective": "clip", "impute": "mean", "impute_options": {}}
    taken = train(config(small_store, **plain, impute_as_observed=True), tmp_path / "taken")
    without = train(config(small_store, objective="clip", impute="none", impute_options={}), tmp_path / "none")
    with pytest.raises(CalmrlError, match="imputer 'mean' would never be used"):
        train(config(small_store, **plain), tmp_path / "ignored")
    heads = [
        {name: value for name, value in tensors(run).items() if name.startswith("projection/")} for run in (taken, without)
    ]
    assert not same(*heads)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modalities": ["vision", "sound"]}, "has no modality 'sound'"),
        ({"modalities": ["vision"]}, "at least two modalities"),
        ({"objective": "calmr"}, "unknown objective 'calmr'; did you mean 'calmrl'?"),
        ({"impute": "pca"}, "unknown imputer 'pca'"),
        ({"impute": "none", "impute_options": {}}, "needs the gaps filled"),
        ({"objective_options": {"temperatur": 1}}, "objective 'calmrl'.*temperatur"),
        ({"impute_options": {"latent": 1}}, "imputer 'ppca'.*latent"),
        ({"scenario": "drop:smell"}, "smell"),
        ({"scenario": "nonsense"}, "nonsense"),
        ({"scenario": "drop:vision,audio,caption"}, "no training item .* shows two of the modalities"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "abacus"}, "'abacus' is not a device"),
        ({"store": "nowhere.zarr"}, "nowhere.zarr"),
    ],
)
def test_a_request_that_makes_no_sense_writes_nothing(small_store, tmp_path, changes, said):
    with pytest.raises(CalmrlError, match=said):
        train(config(**{"store": small_store, **changes}), tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("chosen_by", "said"), [(1, True), (2, False)])
def test_validation_that_can_rank_nothing_is_said(tmp_path, capsys, chosen_by, said):
    vision, text = np.random.default_rng(0).normal(size=(2, 12, 4))
    split = ["train"] * 8 + ["validation"] * chosen_by + ["test"] * (4 - chosen_by)
    store = FeatureStore.from_arrays({"vision": vision, "text": text}, split=split, path=tmp_path / "s.zarr")
    train_heads(store, method="pmrl", epochs=1, dim=4, run=tmp_path / "r")
    note = f"no two validation items (of {chosen_by}) show the same two modalities"
    assert (note in capsys.readouterr().err) is said


def test_a_modality_that_training_never_shows_cannot_be_imputed(small_store, tmp_path):
    with pytest.raises(CalmrlError, match="modality .audio. is never observed in training"):
        train(config(small_store, scenario="drop:audio"), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_hostile_checkpoint_is_not_executed(small_store, tmp_path):
    import os

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'owned'}",)

    with Run.create(tmp_path / "r", config(small_store)) as run:
        pass
    buffer = io.BytesIO()
    torch.save({"epoch": Payload()}, buffer)
    (run.path / "state.pt").write_bytes(buffer.getvalue() + b"\nsha256:" + digest(buffer.getvalue()).encode())
    with pytest.raises(CalmrlError, match="checkpoint .* cannot be read"):
        train(run.config, run.path, resume=True)
    assert not (tmp_path / "owned").exists()


def test_parameters_that_are_frozen_are_those_of_the_embeddings_after_the_warm_up(small_store, tmp_path, monkeypatch):
    """As CalMRL is released: one fit on the warm-up's items, no scaling of the noise, no clipping."""
    fits = []
    monkeypatch.setattr(
        OnlineImputer,
        "refresh",
        lambda self, *given, fit=OnlineImputer.refresh, **named: fits.append(1) or fit(self, *given, **named),
    )
    settings = {
        "warm_up": str(small_store), "warm_up_scenario": "share:0.4", "warm_up_epochs": 1, "imputer_data": "warm-up",
        "scenario": "rest:0.4+pattern:vision+caption", "refresh": 0, "scale_noise": False, "clip_norm": None, "epochs": 3, "checkpoint_every": 1,
    }  # fmt: skip
    run = train(config(small_store, **settings), tmp_path / "run")
    assert len(fits) == 1
    assert run.summary["imputer_noise_scale"] == 1.0
    assert sum("imputer_log_likelihood" in line for line in lines_of(run)) == 1


FROZEN = {
    "warm_up_scenario": "share:0.4", "warm_up_epochs": 2, "imputer_data": "warm-up", "scenario": "rest:0.4+pattern:vision+caption",
    "refresh": 0, "scale_noise": False, "learning_rate": 0.01, "epochs": 2,
}  # fmt: skip


@pytest.mark.parametrize("best", [1, 3])
def test_a_frozen_imputer_belongs_to_the_heads_that_are_kept(small_store, tmp_path, monkeypatch, best):
    """Heads of an epoch before the one fit get parameters of their own; later ones keep those of the fit."""
    fitted_on = []

    def refresh(self, heads, *given, fit=OnlineImputer.refresh, **named):
        fitted_on.append({key: value.clone().numpy() for key, value in heads.state_dict().items()})
        return fit(self, heads, *given, **named)

    monkeypatch.setattr(OnlineImputer, "refresh", refresh)
    monkeypatch.setattr(Session, "_validation_score", lambda self: {"validation_mrr": float(self.epoch == best)})
    run = train(config(small_store, warm_up=str(small_store), **FROZEN), tmp_path / "run")
    assert run.summary["best_epoch"] == best
    kept = {key: value.numpy() for key, value in run.model().projection.state_dict().items()}
    assert len(fitted_on) == (2 if best == 1 else 1)
    assert same(fitted_on[-1], kept) == (best == 1)


def test_a_frozen_imputer_follows_heads_whose_signs_change(small_store, tmp_path, monkeypatch):
    monkeypatch.setattr(Session, "_validation_score", lambda self: {"validation_mrr": float(self.epoch == 3)})
    plain = train(config(small_store, warm_up=str(small_store), **FROZEN), tmp_path / "plain").model()
    monkeypatch.setattr(Session, "_signs", lambda self: (1, -1, 1, -1))
    mirrored = train(config(small_store, warm_up=str(small_store), **FROZEN), tmp_path / "mirrored").model()
    for j, sign in enumerate((1, -1, 1, -1)):
        np.testing.assert_array_equal(mirrored.imputer.weights[j], sign * plain.imputer.weights[j])
        np.testing.assert_array_equal(mirrored.imputer.means[j], sign * plain.imputer.means[j])


def test_without_a_limit_gradients_are_not_clipped():
    for limit, expected in ((None, 100.0), (2.0, 2.0)):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimiser = torch.optim.SGD([parameter], lr=1.0)
        norm = update((100.0 * parameter).sum(), optimiser, [parameter], limit)
        assert float(norm) == 100.0
        assert float(-parameter.detach()) == pytest.approx(expected, rel=1e-4)
