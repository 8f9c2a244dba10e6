"""Objectives against slow float64 references written from their formulas."""

import itertools
import math

import pytest
import torch
from objectives.test_contract import NAMES, batch, build

from calmrl_lab.errors import CalmrlError
from calmrl_lab.objectives.calmrl import Calmrl
from calmrl_lab.objectives.clip import Clip
from calmrl_lab.objectives.pmrl import Pmrl


def slow_cross_entropy(scores, asks, answers):
    """-log softmax of the own item, candidate by candidate; mean over items that have both sides."""
    terms = []
    for i in range(len(scores)):
        if asks[i] and answers[i]:
            total = sum(math.exp(float(scores[i, j])) for j in range(len(scores)) if answers[j])
            terms.append(math.log(total) - float(scores[i, i]))
    return terms


def slow_clip(z, mask, temperature):
    pairs = []
    for a, b in itertools.combinations(range(z.shape[1]), 2):
        scores = z[:, a] @ z[:, b].T / temperature
        there = slow_cross_entropy(scores, mask[:, a], mask[:, b])
        back = slow_cross_entropy(scores.T, mask[:, b], mask[:, a])
        if len(there) > 1:
            pairs.append((sum(there) + sum(back)) / (2 * len(there)))
    return sum(pairs) / len(pairs)


def slow_pmrl(z, mask, tau1, tau2):
    alignment, anchors = [], []
    for item, shown in zip(z, mask, strict=True):
        u, sigma, _ = torch.linalg.svd(item[shown].T, full_matrices=False)
        anchors.append(u[:, 0] * torch.sign(u[:, 0] @ item[shown].sum(dim=0)))
        sigma = torch.cat([sigma, sigma.new_zeros(int(shown.sum()) - len(sigma))])
        if shown.sum() >= 2:
            alignment.append(math.log(sum(math.exp(float(s) / tau1) for s in sigma)) - float(sigma[0]) / tau1)
    scores = torch.stack(anchors) @ torch.stack(anchors).T / tau2
    everyone = [True] * len(z)
    uniformity = slow_cross_entropy(scores, everyone, everyone)
    return sum(alignment) / len(alignment) + sum(uniformity) / len(uniformity)


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clip(k, seed):
    z, mask, _ = batch(7, k, 8, seed)
    value = Clip(NAMES[:k], 8, temperature=0.2).double()(z, mask)["loss"].item()
    assert value == pytest.approx(slow_clip(z, mask, 0.2), rel=1e-6)  # the temperature is a float32 parameter


def positive_set(k, seed):
    """Modalities of an item on one side, so that every anchor has a side to point to."""
    z, mask, imputed = batch(7, k, 8, seed)
    common = torch.nn.functional.normalize(torch.randn(7, 1, 8, generator=torch.Generator().manual_seed(seed + 50), dtype=torch.float64), dim=-1)
    return torch.nn.functional.normalize(z + 2 * common, dim=-1), mask, imputed + common


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pmrl(k, seed):
    z, mask, _ = positive_set(k, seed)
    value = Pmrl(NAMES[:k], 8, alignment_temperature=0.3, uniformity_temperature=0.2)(z, mask)["loss"].item()
    assert value == pytest.approx(slow_pmrl(z, mask, 0.3, 0.2), rel=1e-9)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_calmrl_is_pmrl_on_the_completed_set(k):
    z, mask, imputed = positive_set(k, 4)
    ours = Calmrl(NAMES[:k], 8, 0.3, 0.2, alpha=0.0)(z, mask, imputed)["loss"].item()
    completed = torch.where(mask.unsqueeze(-1), z, imputed)
    assert ours == pytest.approx(slow_pmrl(completed, torch.ones_like(mask), 0.3, 0.2), rel=1e-9)


def test_on_complete_data_the_spectral_terms_are_pmrls():
    z, mask, imputed = batch(8, 4, 6, complete=True)
    ours = build("calmrl", 4, 6, alignment_temperature=0.3, uniformity_temperature=0.2)(z, mask, imputed)
    theirs = build("pmrl", 4, 6, alignment_temperature=0.3, uniformity_temperature=0.2)(z, mask)
    for term in ("alignment", "uniformity"):
        assert torch.equal(ours[term], theirs[term])
    assert ours["loss"].item() == pytest.approx((theirs["loss"] + 0.1 * ours["matching"]).item(), rel=1e-12)


def test_no_gradient_flows_into_what_was_imputed():
    z, mask, imputed = batch(8, 4, 6)
    imputed.requires_grad_()
    build("calmrl", 4, 6)(z.requires_grad_(), mask, imputed)["loss"].backward()
    assert imputed.grad is None


def test_matching_sees_observed_modalities_only():
    z, mask, imputed = batch(8, 4, 6)
    objective = build("calmrl", 4, 6)
    values = []
    for filling in (imputed, -3 * imputed):
        objective.generator.manual_seed(0)
        values.append(objective(z, mask, filling)["matching"])
    assert torch.equal(*values)


def test_perfectly_aligned_and_spread_items_cost_nothing():
    z = torch.eye(6, dtype=torch.float64)[:, None].expand(6, 3, 6)
    terms = build("pmrl", 3, 6, alignment_temperature=0.05, uniformity_temperature=0.02)(z, torch.ones(6, 3, dtype=torch.bool))
    assert terms["loss"].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("objective", "options", "said"),
    [
        ("clip", {"temperature": 0}, "temperature must be a finite number above 0, got 0"),
        ("pmrl", {"alignment_temperature": -1}, "alignment_temperature must be"),
        ("calmrl", {"uniformity_temperature": float("nan")}, "uniformity_temperature must be"),
        ("calmrl", {"alpha": -0.1}, "alpha must not be negative"),
        ("calmrl", {"query": "smell"}, "there is no modality 'smell'"),
    ],
)
def test_options_that_make_no_sense(objective, options, said):
    with pytest.raises(CalmrlError, match=said):
        build(objective, 3, 6, **options)
