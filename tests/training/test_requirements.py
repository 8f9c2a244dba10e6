"""Settings that do not fit each other, or that no run can have, are refused in one sentence before any work."""

import pytest
import torch

from calmrl_lab.config import TrainConfig, build
from calmrl_lab.errors import CalmrlError
from calmrl_lab.experiments.runner import best_of
from calmrl_lab.methods.resolve import resolve
from calmrl_lab.model.selection import mean_over_directions
from calmrl_lab.training.requirements import check_settings, uses_imputed


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"head": "mlp"}, "heads that start from PPCA in closed form are linear, so head 'mlp' cannot start there"),
        ({"risk_control": True}, "there is no calibration whose risk could be controlled: imputer 'none' fills no gaps"),
        ({"similarity": "sum", "init": "random"}, "init is 'random'"),
        ({"features": "centred"}, "features 'centred' is what heads that start at random see, and init is 'ppca'"),
        ({"method": "clip", "impute": "ppca"}, "imputer 'ppca' would never be used: objective 'clip'"),
        ({"method": "closed-form", "impute": "mean"}, "imputer 'mean' would never be used: objective 'none'"),
        ({"method": "clip", "impute_as_observed": True}, "imputer 'none' fills no gaps"),
        ({"impute_options": {"latent_dim": 3}}, "imputer 'none': .*latent_dim"),
        ({"impute": "ppca", "impute_options": {"latent_dmi": 3}}, "imputer 'ppca': .*did you mean 'latent_dim'"),
        ({"method": "clip", "imputer_data": "warm-up"}, "there is no warm-up store"),
        ({"method": "clip", "scenarios": {"a.zarr": "full"}}, "the mix has no store"),
    ],
)
def test_what_does_not_fit_is_one_sentence(values, said):
    with pytest.raises(CalmrlError, match=said):
        check_settings(resolve({"store": "s.zarr", **values}, "test"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", float("inf")), ("learning_rate", float("nan")), ("learning_rate", 1e30), ("weight_decay", float("inf")),
        ("clip_norm", float("inf")), ("risk_level", float("nan")), ("mix", {"a.zarr": float("inf")}), ("mix", {"a.zarr": float("nan")}),
        ("seed", 2**64), ("split_seed", 2**64), ("epochs", 10**18), ("batch_size", 10**18), ("dim", 10**9),
        ("objective_options", {"temperature": float("nan")}), ("objective_options", {"a": [{"b": float("inf")}]}),
        ("impute_options", {"tolerance": float("nan")}), ("init_options", {"whitening": float("inf")}),
        ("members", ({"learning_rate": float("nan")}, {})),
    ],
)  # fmt: skip
def test_what_no_run_can_have_is_refused(key, value):
    with pytest.raises(CalmrlError, match=f"test: {key}"):
        build(TrainConfig, {"store": "s", "objective": "clip", key: value}, "test")


def test_an_imputer_is_wanted_only_where_the_loss_sees_it():
    wanted = {
        name: uses_imputed(resolve({"store": "s", "method": name}, "t"))
        for name in ("calmrl", "clip", "clip-ridge", "zero-shot")
    }
    assert wanted == {"calmrl": True, "clip": False, "clip-ridge": True, "zero-shot": False}


def test_a_model_of_no_numbers_is_scored_last():
    for scores in (torch.full((5, 5), float("nan")), torch.eye(5).log() * 0):
        found = mean_over_directions([scores])
        assert 0 <= found["validation_mrr"] <= 1
        assert found["validation_recall_at_1"] == 0
    assert mean_over_directions([torch.full((5, 5), float("nan"))])["validation_mrr"] < 0.2


def test_a_score_that_is_no_number_wins_no_grid():
    scored = [{"settings": "broken", "validation_mrr": float("nan")}, {"settings": "whole", "validation_mrr": 0.1}]
    assert best_of(scored) == best_of(scored[::-1]) == "whole"
