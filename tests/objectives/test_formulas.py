"""Objectives against slow float64 references written from their formulas, gradients against those of the references by differences."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives import references
from objectives.test_contract import NAMES, batch, build

from calmrl_lab.errors import CalmrlError
from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.calmrl import Calmrl
from calmrl_lab.objectives.pmrl import Pmrl

CAPTION = 2


def value(name, z, mask, **options):
    objective = objectives.get(name)(NAMES[: z.shape[1]], z.shape[2], **options).double()
    return objective(z, mask)["loss"].item()


def query_of(k):
    return CAPTION if k > CAPTION else 0


def temperature_of(options):
    """Temperatures are float32 parameters."""
    return float(torch.tensor(options))


def one_sided(k, seed, b=7, d=8):
    """Modalities of an item on one side, so that every anchor has a side to point to."""
    z, mask, imputed = batch(b, k, d, seed)
    generator = torch.Generator().manual_seed(seed + 50)
    common = torch.nn.functional.normalize(torch.randn(b, 1, d, generator=generator, dtype=torch.float64), dim=-1)
    return torch.nn.functional.normalize(z + 2 * common, dim=-1), mask, imputed + common


def learned(temperature):
    """1 / temperature as LearnedTemperature holds it: the exponential of a float32 logarithm."""
    return 1 / math.exp(float(torch.tensor(-math.log(temperature))))


cases = st.tuples(st.integers(2, 6), st.integers(0, 10_000), st.booleans())


def drawn(case):
    k, seed, complete = case
    z, mask, _ = one_sided(k, seed, b=6)
    return z, (torch.ones_like(mask) if complete else mask)


@given(cases)
@settings(max_examples=25, deadline=None)
def test_clip(case):
    z, mask = drawn(case)
    assert value("clip", z, mask, temperature=0.2) == pytest.approx(references.clip(z, mask, learned(0.2)), abs=1e-9)


@given(cases)
@settings(max_examples=15, deadline=None)
def test_imagebind(case):
    z, mask = drawn(case)
    # vision is the anchor; audio is released at 20, depth at 5, the others start at 1 / 0.07.
    free = 1 / learned(0.07)
    factors = [{"audio": 20.0, "depth": 5.0}.get(name, free) for name in NAMES[1 : z.shape[1]]]
    assert value("imagebind", z, mask) == pytest.approx(references.to_anchor(z, mask, 0, factors), rel=1e-6, abs=1e-9)
    exact = value("imagebind", z, mask, fixed_scales=dict.fromkeys(NAMES, 1.0))
    assert exact == pytest.approx(references.to_anchor(z, mask, 0, [1.0] * len(factors)), abs=1e-9)


@given(cases)
@settings(max_examples=15, deadline=None)
def test_languagebind(case):
    z, mask = drawn(case)
    k = z.shape[1]
    reference = references.to_anchor(z, mask, query_of(k), [1 / learned(0.07)] * (k - 1))
    assert value("languagebind", z, mask) == pytest.approx(reference, abs=1e-9)


@given(cases, st.sampled_from(["sigma", "lambda"]), st.sampled_from(["mean", "squared"]))
@settings(max_examples=25, deadline=None)
def test_pmrl(case, spectrum, sign):
    z, mask = drawn(case)
    ours = value(
        "pmrl", z, mask, alignment_temperature=0.3, uniformity_temperature=0.2, alpha=0.0, spectrum=spectrum, sign=sign
    )
    theirs = references.pmrl(z, mask, 0.3, 0.2, power=2 if spectrum == "lambda" else 1, squared=sign == "squared")
    assert ours == pytest.approx(theirs, abs=1e-9)


@given(cases)
@settings(max_examples=15, deadline=None)
def test_calmrl_is_pmrl_on_the_completed_set(case):
    k, seed, _ = case
    z, mask, imputed = one_sided(k, seed, b=6)
    ours = Calmrl(NAMES[:k], 8, 0.3, 0.2, alpha=0.0)(z, mask, imputed)["loss"].item()
    completed = torch.where(mask.unsqueeze(-1), z, imputed)
    assert ours == pytest.approx(references.pmrl(completed, torch.ones_like(mask), 0.3, 0.2), abs=1e-9)


@given(cases)
@settings(max_examples=20, deadline=None)
def test_gram(case):
    z, mask = drawn(case)
    ours = value("gram", z, mask, temperature=0.25, alpha=0.0, epsilon=1e-6)
    assert ours == pytest.approx(references.gram(z, mask, query_of(z.shape[1]), 0.25, 0.1, 1e-6), abs=1e-9)


@given(cases, st.sampled_from(["squared", "root"]))
@settings(max_examples=20, deadline=None)
def test_triangle(case, form):
    z, mask = drawn((max(case[0], 3), *case[1:]))
    ours = value("triangle", z, mask, form=form, temperature=0.25, alpha=0.0, epsilon=1e-6)
    assert ours == pytest.approx(references.triangle(z, mask, CAPTION, [0, 1], form, 0.25, 0.1, 1e-6), abs=1e-9)


@given(cases)
@settings(max_examples=15, deadline=None)
def test_vast(case):
    z, mask = drawn(case)
    k = z.shape[1]
    objective = objectives.get("vast")(NAMES[:k], 8, temperature=0.25, alpha=0.0).double()
    generator = torch.Generator().manual_seed(case[1])
    with torch.no_grad():
        for weight in objective.fusion.weights:
            weight += 0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    maps = dict(zip(objective.fusion.subsets, (w.detach() for w in objective.fusion.weights), strict=True))
    ours = objective(z, mask)["loss"].item()
    assert ours == pytest.approx(references.vast(z, mask, query_of(k), maps, 0.25, 0.1), abs=1e-9)


@given(cases)
@settings(max_examples=15, deadline=None)
def test_scalar(case):
    z, mask = drawn(case)
    tau = temperature_of(0.07)
    found = objectives.get("scalar")(NAMES[: z.shape[1]], 8, alpha=0.0, consistency=0.0).double()(z, mask)
    assert found["contrast"].item() == pytest.approx(references.scalar(z, mask, query_of(z.shape[1]), tau, 0.1), abs=1e-9)
    assert found["uniformity"].item() == pytest.approx(references.spread(z, mask), abs=1e-9)
    assert found["loss"].item() == pytest.approx((found["contrast"] + 0.1 * found["uniformity"]).item(), abs=1e-12)


@given(st.integers(2, 3), st.integers(0, 10_000), st.booleans())
@settings(max_examples=15, deadline=None)
def test_symile(k, seed, arity_scale):
    z, mask = drawn((k, seed, False))
    ours = value("symile", z, mask, negatives="all", temperature=0.5, arity_scale=arity_scale)
    theirs = references.symile_all(z, mask, learned(0.5), 8**0.5 if arity_scale else 1.0)
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_shuffled_negatives_of_symile_come_from_items_that_show_the_modality():
    _, mask, _ = batch(40, 4, 6, seed=2)
    objective = objectives.get("symile")(NAMES[:4], 6)
    sources = objective._permutations(mask)
    for modality, row in enumerate(sources):
        shown = mask[:, modality].nonzero().flatten().tolist()
        assert sorted(row[: len(shown)].tolist()) == shown
        assert set(row.tolist()) == set(shown)


@given(cases)
@settings(max_examples=15, deadline=None)
def test_comm_at_its_start(case):
    z, mask = drawn((min(case[0], 4), *case[1:]))
    ours = value("comm", z, mask, noise=0.0)
    assert ours == pytest.approx(references.comm_start(z, mask, 0.1), abs=1e-9)


REFERENCED = {
    "clip": ({"temperature": 0.5}, lambda z, mask: references.clip(z, mask, learned(0.5))),
    "pmrl": (
        {"alignment_temperature": 0.3, "uniformity_temperature": 0.2, "alpha": 0.0},
        lambda z, mask: references.pmrl(z, mask, 0.3, 0.2),
    ),
    "gram": (
        {"temperature": 0.25, "alpha": 0.0, "epsilon": 1e-6},
        lambda z, mask: references.gram(z, mask, query_of(z.shape[1]), 0.25, 0.1, 1e-6),
    ),
    "triangle": (
        {"temperature": 0.25, "alpha": 0.0},
        lambda z, mask: references.triangle(z, mask, CAPTION, [0, 1], "squared", 0.25, 0.1, 0.0),
    ),
    "scalar": (
        {"alpha": 0.0, "consistency": 0.0, "uniformity": 0.0, "temperature": 0.25},
        lambda z, mask: references.scalar(z, mask, query_of(z.shape[1]), 0.25, 0.1),
    ),
    "symile": ({"negatives": "all", "temperature": 0.5}, lambda z, mask: references.symile_all(z, mask, learned(0.5), 8**0.5)),
    "comm": ({"noise": 0.0}, lambda z, mask: references.comm_start(z, mask, 0.1)),
}


@pytest.mark.parametrize("name", REFERENCED)
def test_gradients_are_those_of_the_reference(name):
    """Along random directions, by central differences of the slow formulation: nothing of ours is differentiated twice."""
    options, reference = REFERENCED[name]
    z, mask, _ = one_sided(3, 5, b=5)
    mask[0] = True
    z.requires_grad_()
    objectives.get(name)(NAMES[:3], 8, **options).double()(z, mask)["loss"].backward()
    for seed in range(3):
        direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        step = 1e-5
        with torch.no_grad():
            slope = (reference(z + step * direction, mask) - reference(z - step * direction, mask)) / (2 * step)
        assert float((z.grad * direction).sum()) == pytest.approx(slope, abs=2e-7)


def test_on_complete_data_calmrl_is_pmrl():
    z, mask, imputed = batch(8, 4, 6, complete=True)
    ours = build("calmrl", 4, 6, alignment_temperature=0.3, uniformity_temperature=0.2)(z, mask, imputed)
    theirs = build("pmrl", 4, 6, alignment_temperature=0.3, uniformity_temperature=0.2)(z, mask)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[term], theirs[term]) for term in ours)


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
    assert (terms["alignment"] + terms["uniformity"]).item() == pytest.approx(0, abs=1e-12)


def test_raw_signs_turn_uniformity_into_noise():
    """PMRL's released code leaves the sign of u1 to the SVD; on cone-shaped features uniformity then reads lower than it is."""
    generator = torch.Generator().manual_seed(0)
    cone = torch.randn(1, 1, 32, generator=generator) * 1.5
    z = torch.nn.functional.normalize(
        torch.randn(128, 3, 32, generator=generator) + torch.randn(128, 1, 32, generator=generator) + cone, dim=-1
    )
    mask = torch.ones(128, 3, dtype=torch.bool)
    fixed, raw = (Pmrl(NAMES[:3], 32, sign=sign, alpha=0.0)(z, mask) for sign in ("mean", "raw"))
    torch.testing.assert_close(raw["alignment"], fixed["alignment"])
    assert raw["uniformity"] < 0.95 * fixed["uniformity"]


def test_squared_cosines_know_no_sign():
    z, mask, _ = one_sided(3, 1)
    flipped = z * torch.tensor([1.0, -1, 1, -1, 1, -1, 1], dtype=torch.float64)[:, None, None]
    objective = Pmrl(NAMES[:3], 8, sign="squared", alpha=0.0)
    torch.testing.assert_close(objective(flipped, mask)["loss"], objective(z, mask)["loss"], rtol=1e-12, atol=0)


def scores_of(objective, z, mask):
    sides = objective.sides(z, mask)
    return objective.scores(sides, objective.context(sides))


class TestKnownLimits:
    """What each geometric score cannot see; a method that gets these right is another method."""

    @staticmethod
    def pairs(second):
        z = torch.nn.functional.normalize(
            torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1
        )
        z[:, 1] = second(z)
        return z, torch.ones(6, 3, dtype=torch.bool)

    def test_volume_of_two_is_the_sine(self):
        z, mask = self.pairs(lambda z: z[:, 1])
        objective = objectives.get("gram")(NAMES[:2], 8, epsilon=0.0)
        scores = scores_of(objective, z[:, :2], mask[:, :2])
        torch.testing.assert_close(scores, -(1 - (z[:, 0] @ z[:, 1].T) ** 2).sqrt(), rtol=1e-9, atol=1e-9)

    def test_volume_and_leading_value_take_opposites_for_equals(self):
        """{z, -z} counts as perfectly aligned."""
        z, mask = self.pairs(lambda z: -z[:, 0])
        aligned = Pmrl(NAMES[:2], 8, alpha=0.0)(z[:, :2], mask[:, :2])["alignment"]
        assert aligned.item() == pytest.approx(math.log1p(math.exp(-(2**0.5) / 0.05)), abs=1e-9)
        objective = objectives.get("gram")(NAMES[:2], 8, epsilon=0.0)
        assert scores_of(objective, z[:, :2], mask[:, :2]).diagonal().abs().max() < 1e-6

    def test_one_collinear_pair_makes_any_volume_vanish(self):
        z, mask = self.pairs(lambda z: z[:, 0])
        objective = objectives.get("gram")(NAMES[:3], 8, epsilon=0.0)
        assert scores_of(objective, z, mask).abs().max() < 1e-5  # whatever the caption says

    def test_points_on_a_line_have_no_area(self):
        z = torch.zeros(2, 3, 8, dtype=torch.float64)
        z[:, 0, 0], z[:, 1, 0], z[:, 2, 0] = 1.0, 0.5, -1.0
        objective = objectives.get("triangle")(NAMES[:3], 8)
        assert scores_of(objective, z, torch.ones(2, 3, dtype=torch.bool)).abs().max() < 1e-12

    def test_more_modalities_shrink_a_volume(self):
        z, mask = self.pairs(lambda z: z[:, 1])
        objective = objectives.get("gram")(NAMES[:3], 8, epsilon=0.0)
        fewer = mask.clone()
        fewer[:, 1] = False
        assert (scores_of(objective, z, mask) >= scores_of(objective, z, fewer) - 1e-12).all()

    def test_pmrls_alignment_dies_where_sets_are_aligned(self):
        """VAST-like singular values at the released temperature: a loss of exactly zero in float32."""
        basis = torch.eye(4, 8)
        sigma = torch.tensor([1.85, 0.46, 0.44, 0.42])
        z = (basis.T * sigma) @ torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0].T
        batched = z.T[None].repeat(3, 1, 1).requires_grad_()
        terms = Pmrl(NAMES[:4], 8, alpha=0.0)(batched, torch.ones(3, 4, dtype=torch.bool))
        assert terms["alignment"].item() == 0.0


def test_frozen_modalities_receive_no_gradient():
    z, mask, _ = batch(8, 4, 6)
    for name, options, index in (
        ("imagebind", {"frozen": ["vision", "caption"]}, [0, 2]),
        ("languagebind", {"freeze_anchor": True}, [2]),
    ):
        z = z.detach().requires_grad_()
        build(name, 4, 6, **options)(z, mask)["loss"].backward()
        moved = z.grad.abs().sum(dim=(0, 2)) > 0
        assert not moved[index].any()
        assert moved.any()


def test_several_captions_of_one_clip_share_the_target():
    """Two captions of the same clip: by hand, rows 0 and 1 have both columns as targets."""
    z = torch.nn.functional.normalize(
        torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1
    )
    objective = build("clip", 2, 4, temperature=0.5)
    scores = z[:, 0] @ z[:, 1].T * objective.scale()
    expected = 0.0
    for matrix in (scores, scores.T):
        log_p = torch.log_softmax(matrix, dim=1)
        expected += -((log_p[0, 0] + log_p[0, 1]) / 2 + (log_p[1, 0] + log_p[1, 1]) / 2 + log_p[2, 2]) / 3 / 2
    ours = objective(z, torch.ones(3, 2, dtype=torch.bool), None, torch.tensor([7, 7, 3]))["loss"]
    assert ours.item() == pytest.approx(expected.item(), abs=1e-12)


def test_a_group_is_no_negative_of_itself_in_uniformity():
    z, mask, _ = one_sided(3, 3)
    objective = Pmrl(NAMES[:3], 8, alpha=0.0)
    alone = objective(z, mask, None, torch.tensor([0, 0, 0, 0, 0, 0, 0]))
    assert alone["uniformity"].item() == pytest.approx(0.0, abs=1e-12)
    without_last = objective(z[:6], mask[:6])["uniformity"]
    doubled = torch.cat([z[:6], z[5:6]]), torch.cat([mask[:6], mask[5:6]]), None, torch.tensor([0, 1, 2, 3, 4, 5, 5])
    assert objective(*doubled)["uniformity"] > without_last - 1e-12  # the copy still repels the others, and itself counts too


@pytest.mark.parametrize(
    ("objective", "options", "said"),
    [
        ("clip", {"temperature": 0}, "temperature must be a finite number above 0, got 0"),
        ("clip", {"temperature": True}, "temperature must be"),
        ("pmrl", {"alignment_temperature": -1}, "alignment_temperature must be"),
        ("calmrl", {"uniformity_temperature": float("nan")}, "uniformity_temperature must be"),
        ("calmrl", {"alpha": -0.1}, "alpha must not be negative"),
        ("calmrl", {"query": "captions"}, "there is no modality 'captions'; did you mean 'caption'?"),
        ("pmrl", {"sign": "rwa"}, "sign 'rwa' is unknown; did you mean 'raw'?"),
        ("pmrl", {"spectrum": "s"}, "spectrum 's' is unknown"),
        ("gram", {"smoothing": 1.0}, "smoothing must be at least 0 and below 1"),
        ("gram", {"epsilon": float("inf")}, "epsilon must not be negative, got inf"),
        ("imagebind", {"frozen": ["smell"]}, "there is no modality 'smell'"),
        ("imagebind", {"fixed_scales": {"audio": 0}}, "fixed_scales.audio must be"),
        ("triangle", {"corners": ["audio", "caption"]}, "corners must be two modalities other than the query 'caption'"),
        ("symile", {"negatives": "some"}, "negatives 'some' is unknown"),
        ("scalar", {"weight_temperature": 0}, "weight_temperature must be"),
        ("comm", {"noise": -1}, "noise must not be negative"),
    ],
)
def test_options_that_make_no_sense(objective, options, said):
    with pytest.raises(CalmrlError) as error:
        objectives.get(objective)(NAMES[:3], 6, **options)
    assert said in error.value.message


def test_numbers_of_modalities_that_make_no_sense():
    for name, modalities, said in (
        ("clip", ("vision",), "at least two different modalities"),
        ("clip", ("vision", "vision"), "at least two different modalities"),
        ("triangle", ("vision", "caption"), "needs three modalities, got 2"),
        ("vast", tuple("abcdefgh"), "at most 7 modalities, got 8"),
    ):
        with pytest.raises(CalmrlError, match=said):
            objectives.get(name)(modalities, 6)
    with pytest.raises(CalmrlError, match="too many"):
        objectives.get("symile")(NAMES[:4], 6, negatives="all")


def test_a_learned_temperature_stays_trainable_at_its_limit():
    for name in ("clip", "gram"):
        objective = build(name, 3, 6, temperature=0.002)
        z, mask, _ = batch(8, 3, 6)
        found = objective(z, mask)
        assert found["temperature"].item() == pytest.approx(0.01, rel=1e-6)
        found["loss"].backward()
        assert objective.scale.value.grad.abs() > 0


def test_all_patterns_of_masks_agree_with_the_reference():
    """Every pattern of four modalities, twice, in one batch."""
    mask = torch.tensor(list(itertools.product([False, True], repeat=4))).repeat(2, 1)
    generator = torch.Generator().manual_seed(9)
    z = torch.nn.functional.normalize(torch.randn(32, 4, 8, generator=generator, dtype=torch.float64) + 1.5, dim=-1)
    assert value("clip", z, mask) == pytest.approx(references.clip(z, mask, learned(0.07)), abs=1e-9)
    assert value("gram", z, mask, alpha=0.0) == pytest.approx(
        references.gram(z, mask, CAPTION, temperature_of(0.07), 0.1, 1e-8), abs=1e-8
    )
    ours = value("pmrl", z, mask, alignment_temperature=0.3, alpha=0.0)
    assert ours == pytest.approx(references.pmrl(z, mask, 0.3, 0.1), abs=1e-9)
