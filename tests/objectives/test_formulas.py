"""Objectives against slow float64 formulations: values, and gradients that torch takes of the slow ones; known limits, options."""

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
from calmrl_lab.objectives.pmrl import PMRL

CAPTION = 2


def value(name, z, mask, **options):
    objective = objectives.get(name)(NAMES[: z.shape[1]], z.shape[2], **options).double()
    return objective(z, mask)["loss"].item()


def query_of(k):
    return CAPTION if k > CAPTION else 0


def one_sided(k, seed, b=7, d=8):
    """Modalities of an item on one side, so that every anchor has a side to point to."""
    z, mask, imputed = batch(b, k, d, seed)
    generator = torch.Generator().manual_seed(seed + 50)
    common = torch.nn.functional.normalize(torch.randn(b, 1, d, generator=generator, dtype=torch.float64), dim=-1)
    return torch.nn.functional.normalize(z + 2 * common, dim=-1), mask, imputed + common


def matched(o, queries, contexts, able, generator, logits, groups):
    return o.alpha * references.matching(o.matching, queries, contexts, able, generator, logits, groups) if o.alpha else 0.0


def spectral(o, z, mask, members, belongs, generator, groups):
    power, squared = 2 if o.spectrum == "lambda" else 1, o.sign == "squared"
    loss = references.pmrl(members, belongs, o.alignment_temperature, o.uniformity_temperature, power, squared, groups)
    queries, contexts, able = references.spectral_sides(z, mask, o.query)
    return loss + matched(o, queries, contexts, able, generator, queries @ contexts.T / o.negative_temperature, groups)


def pmrl(o, z, mask, imputed, groups, generator):
    return spectral(o, z, mask, z, mask, generator, groups)


def calmrl(o, z, mask, imputed, groups, generator):
    completed = torch.where(mask.unsqueeze(-1), z, imputed)
    return spectral(o, z, mask, completed, mask.any(dim=1, keepdim=True).expand_as(mask), generator, groups)


def clip(o, z, mask, imputed, groups, generator):
    return references.clip(z, mask, o.scale(), groups)


def imagebind(o, z, mask, imputed, groups, generator):
    # vision is the anchor.
    return references.to_anchor(z, mask, 0, [scale() for scale in o.scales], groups)


def languagebind(o, z, mask, imputed, groups, generator):
    return references.to_anchor(z, mask, query_of(z.shape[1]), [o.scale()] * (z.shape[1] - 1), groups)


def gram(o, z, mask, imputed, groups, generator):
    query, temperature = query_of(z.shape[1]), 1 / o.scale()
    contrast = references.gram(z, mask, query, temperature, 0.1, o.epsilon, groups)
    _, asks, answers, queries, contexts = references.sides(z, mask, query)
    logits = references.gram_scores(z, mask, query, o.epsilon) / temperature
    return contrast + matched(o, queries, contexts, asks & answers, generator, logits, groups)


def triangle(o, z, mask, imputed, groups, generator):
    contrast = references.triangle(z, mask, CAPTION, [0, 1], o.form, 1 / o.scale(), 0.1, o.epsilon, groups)
    _, asks, _, queries, contexts = references.sides(z[:, :3], mask[:, :3], CAPTION)
    logits = references.triangle_scores(z, mask, CAPTION, [0, 1], o.form, o.epsilon) * o.scale()
    return contrast + matched(o, queries, contexts, asks & mask[:, :2].all(dim=1), generator, logits, groups)


def vast(o, z, mask, imputed, groups, generator):
    query, maps = query_of(z.shape[1]), dict(zip(o.fusion.subsets, o.fusion.weights, strict=True))
    contrast = references.vast(z, mask, query, maps, 1 / o.scale(), 0.1, groups)
    others, asks, answers, queries, _ = references.sides(z, mask, query)
    contexts = references.fused(z, mask, others, maps)
    return contrast + matched(o, queries, contexts, asks & answers, generator, queries @ contexts.T * o.scale(), groups)


def scalar(o, z, mask, imputed, groups, generator):
    query = query_of(z.shape[1])
    loss = references.scalar(z, mask, query, 1 / o.scale(), 0.1, groups)
    loss = (
        loss + references.consistency(z, mask, query, 1 / o.scale(), 0.1, generator) + 0.1 * references.spread(z, mask, groups)
    )
    _, asks, answers, queries, contexts = references.sides(z, mask, query)
    logits = references.centroid_scores(z, mask, query, 0.1) * o.scale()
    return loss + matched(o, queries, contexts, asks & answers, generator, logits, groups)


def symile(o, z, mask, imputed, groups, generator):
    sources = references.shuffled(mask, generator) if o.negatives == "shuffled" else None
    return references.symile(z, mask, o.scale(), o.arity, sources, groups)


def comm(o, z, mask, imputed, groups, generator):
    return references.comm(z, mask, o.fusion, o.temperature, o.noise, generator, groups)


def gated_symile(o, z, mask, imputed, groups, generator):
    return references.gated_symile(z, mask, o.gate, o.scale(), o.distillation, groups)


def confu(o, z, mask, imputed, groups, generator):
    heads = dict(zip(o.pairs, o.heads, strict=True))
    return references.confu(z, mask, heads, o.temperature, o.fused_share, groups)


# Every objective as it is by default, matching, consistency, augmentation and random negatives included, but for temperatures at which
# gradients are of ordinary size; and its other forms.
FORMS = {
    "calmrl": (calmrl, [{}, {"spectrum": "lambda"}, {"sign": "squared"}]),
    "clip": (clip, [{"temperature": 0.5}]),
    "comm": (comm, [{}, {"noise": 0.0}]),
    "confu": (confu, [{"temperature": 0.3, "dropout": 0.0}]),
    "gated-symile": (gated_symile, [{"temperature": 0.5, "negatives": "all"}]),
    "gram": (gram, [{"temperature": 0.25, "epsilon": 1e-6}]),
    "imagebind": (imagebind, [{"temperature": 0.5}]),
    "languagebind": (languagebind, [{"temperature": 0.5}]),
    "pmrl": (pmrl, [{"alignment_temperature": 0.3}]),
    "scalar": (scalar, [{}]),
    "symile": (symile, [{"temperature": 0.5}, {"temperature": 0.5, "arity_scale": False}]),
    "triangle": (triangle, [{"temperature": 0.25}, {"temperature": 0.25, "form": "root", "epsilon": 1e-6}]),
    "vast": (vast, [{"temperature": 0.25}]),
}
VARIANTS = [(name, form) for name, (_, forms) in FORMS.items() for form in range(len(forms))]


def agree(name, form, z, mask, imputed, groups=None, **more):
    """Loss, gradient of the embeddings and of every parameter: ours against the slow formulation's, to 1e-9."""
    slow, forms = FORMS[name]
    objective = build(name, z.shape[1], z.shape[2], **forms[form], **more)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        # Away from the start, where fusions are means and some layers are zero.
        for parameter in objective.parameters():
            if parameter.ndim:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    moving = [z.clone().requires_grad_(), *objective.parameters()]
    if objective.generator is not None:
        objective.generator.manual_seed(7)
    ours = objective(moving[0], mask, imputed, groups)["loss"]
    theirs = slow(objective, moving[0], mask, imputed, groups, torch.Generator().manual_seed(7))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert ours.requires_grad
    found = torch.autograd.grad(ours, moving, allow_unused=True)
    expected = torch.autograd.grad(theirs, moving, allow_unused=True) if theirs.requires_grad else [None] * len(moving)
    for one, other, place in zip(found, expected, moving, strict=True):
        one, other = (torch.zeros_like(place) if part is None else part for part in (one, other))
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_every_objective_has_a_slow_twin():
    assert set(FORMS) == set(objectives)


@pytest.mark.parametrize(("name", "form"), VARIANTS)
@pytest.mark.parametrize("k", [2, 3, 4, *(pytest.param(k, marks=pytest.mark.slow) for k in (5, 6))])
def test_loss_and_gradients_under_every_pattern_of_masks(name, form, k):
    """All 2^k patterns in one batch, the empty one included."""
    mask = torch.tensor(list(itertools.product([False, True], repeat=k)))
    mask = mask[torch.randperm(len(mask), generator=torch.Generator().manual_seed(k))]
    z, _, imputed = one_sided(k, k, b=len(mask))
    agree(name, form, z, mask, imputed)


@pytest.mark.parametrize(("name", "form"), VARIANTS)
@given(st.integers(2, 6), st.integers(0, 10_000), st.booleans(), st.booleans())
@settings(max_examples=4, deadline=None)
def test_loss_and_gradients_of_random_batches(name, form, k, seed, complete, grouped):
    if name == "triangle" and k == 2:
        return
    z, mask, imputed = one_sided(k, seed, b=6)
    groups = torch.randint(4, (6,), generator=torch.Generator().manual_seed(seed)) if grouped else None
    agree(name, form, z, torch.ones_like(mask) if complete else mask, imputed, groups)


@given(st.integers(2, 3), st.integers(0, 10_000), st.booleans())
@settings(max_examples=10, deadline=None)
def test_symile_with_all_negatives(k, seed, grouped):
    z, mask, imputed = one_sided(k, seed, b=5)
    groups = torch.randint(3, (5,), generator=torch.Generator().manual_seed(seed)) if grouped else None
    agree("symile", 0, z, mask, imputed, groups, negatives="all")


def test_shuffled_negatives_of_symile_come_from_items_that_show_the_modality():
    _, mask, _ = batch(40, 4, 6, seed=2)
    objective = objectives.get("symile")(NAMES[:4], 6)
    sources = objective._permutations(mask)
    for modality, row in enumerate(sources):
        shown = mask[:, modality].nonzero().flatten().tolist()
        assert sorted(row[: len(shown)].tolist()) == shown
        assert set(row.tolist()) == set(shown)


def test_on_complete_data_calmrl_is_pmrl():
    z, mask, imputed = batch(8, 4, 6, complete=True)
    ours = build("calmrl", 4, 6, alignment_temperature=0.3, uniformity_temperature=0.2)(z, mask, imputed)
    theirs = build("pmrl", 4, 6, alignment_temperature=0.3, uniformity_temperature=0.2)(z, mask)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[term], theirs[term]) for term in ours)


def test_imagebind_has_its_released_factors_fixed_and_learns_the_others():
    objective = objectives.get("imagebind")(NAMES[:5], 8)
    factors = dict(zip(NAMES[1:5], (scale().item() for scale in objective.scales), strict=True))
    assert factors == pytest.approx({"audio": 20.0, "caption": 1 / 0.07, "subtitle": 1 / 0.07, "depth": 5.0}, rel=1e-6)
    assert len(list(objective.parameters())) == 2


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
    fixed, raw = (PMRL(NAMES[:3], 32, sign=sign, alpha=0.0)(z, mask) for sign in ("mean", "raw"))
    torch.testing.assert_close(raw["alignment"], fixed["alignment"])
    assert raw["uniformity"] < 0.95 * fixed["uniformity"]


def test_squared_cosines_know_no_sign():
    z, mask, _ = one_sided(3, 1)
    flipped = z * torch.tensor([1.0, -1, 1, -1, 1, -1, 1], dtype=torch.float64)[:, None, None]
    objective = PMRL(NAMES[:3], 8, sign="squared", alpha=0.0)
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
        aligned = PMRL(NAMES[:2], 8, alpha=0.0)(z[:, :2], mask[:, :2])["alignment"]
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
        terms = PMRL(NAMES[:4], 8, alpha=0.0)(batched, torch.ones(3, 4, dtype=torch.bool))
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
    objective = PMRL(NAMES[:3], 8, alpha=0.0)
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
        ("pmrl", {"sign": "rwa"}, "unknown sign 'rwa'; did you mean 'raw'?"),
        ("pmrl", {"spectrum": "s"}, "unknown spectrum 's'"),
        ("gram", {"smoothing": 1.0}, "smoothing must be at least 0 and below 1"),
        ("gram", {"epsilon": float("inf")}, "epsilon must not be negative, got inf"),
        ("imagebind", {"frozen": ["smell"]}, "there is no modality 'smell'"),
        ("imagebind", {"fixed_scales": {"audio": 0}}, "fixed_scales.audio must be"),
        ("triangle", {"corners": ["audio", "caption"]}, "corners must be two modalities other than the query 'caption'"),
        ("symile", {"negatives": "some"}, "unknown negatives 'some'"),
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
