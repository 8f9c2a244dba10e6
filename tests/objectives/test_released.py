"""CalMRL as released, and PMRL: one training step against a slow float64 twin written from the facts of the released code.

The twin takes one batch of one pattern, as the released loader makes them: E-step with its jitter, filling, alignment and uniformity of the
spectrum of caption, vision and audio, matching. Matching is our substitute head in both, whose condition is that of the task.
"""

import pytest
import torch
from objectives import references
from torch.nn import functional

from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.query_to_item import CrossObjective

MODALITIES = ("caption", "vision", "audio", "subtitle")
JITTER = 1e-6
TAU_ALIGNMENT, TAU_UNIFORMITY, ALPHA, TAU_NEGATIVES = 0.05, 0.1, 0.1, 0.07
RELEASED = {
    "alignment_temperature": TAU_ALIGNMENT, "uniformity_temperature": TAU_UNIFORMITY, "alpha": ALPHA, "sign": "raw",
    "spectrum_of": ["caption", "vision", "audio"], "detach_gathered": True, "detach_context": True, "negative_temperature": TAU_NEGATIVES,
}  # fmt: skip
# Pattern of a batch: what its items show.
PATTERNS = {
    "V-T": ("caption", "vision"),
    "A-T": ("caption", "audio"),
    "V-T with subtitles": ("caption", "vision", "subtitle"),
    "complete": MODALITIES,
}


def generative(k, d, q, seed=0):
    """Parameters (W, mu, sigma^2) of k modalities."""
    generator = torch.Generator().manual_seed(seed)
    weights = [0.3 * torch.randn(d, q, generator=generator, dtype=torch.float64) for _ in range(k)]
    means = [0.2 * torch.randn(d, generator=generator, dtype=torch.float64) for _ in range(k)]
    return weights, means, [0.02 + 0.01 * m for m in range(k)]


def filled(z, observed, weights, means, noise):
    """The released E-step and filling of one item z [k, d]: observed columns as they are, the others W m + mu, without gradient."""
    q = weights[0].shape[1]
    precision = torch.eye(q, dtype=torch.float64) + JITTER * torch.eye(q, dtype=torch.float64)
    right = torch.zeros(q, dtype=torch.float64)
    for m in observed:
        precision = precision + weights[m].T @ weights[m] / noise[m]
        right = right + weights[m].T @ (z[m].detach() - means[m]) / noise[m]
    mean = torch.linalg.inv(precision) @ right
    return [z[m] if m in observed else weights[m] @ mean + means[m] for m in range(len(z))]


def spectral_terms(sets):
    """(alignment, uniformity) of a list of [k, d] sets: raw signs of the SVD, candidates held fixed."""
    alignment, anchors = [], []
    for columns in sets:
        u, sigma, _ = torch.linalg.svd(columns.T, full_matrices=False)
        anchors.append(u[:, 0])
        alignment.append(-torch.log_softmax(sigma / TAU_ALIGNMENT, dim=0)[0])
    gathered = torch.stack(anchors).detach()
    uniformity = [-torch.log_softmax(gathered @ u / TAU_UNIFORMITY, dim=0)[i] for i, u in enumerate(anchors)]
    return references.mean(alignment), references.mean(uniformity)


def batch(k, d=12, count=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(count, 1, d, generator=generator, dtype=torch.float64)
    return functional.normalize(common + 0.7 * torch.randn(count, k, d, generator=generator, dtype=torch.float64), dim=2)


def slow_step(objective, z, observed, parameters, generator):
    """(loss, alignment, uniformity, matching) of a batch whose items all show `observed`."""
    spectrum_of = [m for m in range(z.shape[1]) if MODALITIES[m] in RELEASED["spectrum_of"]]
    completed = [filled(item, observed, *parameters) for item in z]
    alignment, uniformity = spectral_terms([torch.stack([columns[m] for m in spectrum_of]) for columns in completed])
    conditions = torch.stack([references.unit(sum(item[m] for m in observed if m != 0)).detach() for item in z])
    texts, able = z[:, 0], torch.ones(len(z), dtype=torch.bool)
    logits = texts @ conditions.T / TAU_NEGATIVES
    matching = references.matching(objective.matching, texts, conditions, able, generator, logits)
    return alignment + uniformity + ALPHA * matching, alignment, uniformity, matching


def our_step(objective, z, observed, parameters):
    weights, means, noise = parameters
    mask = torch.zeros(z.shape[:2], dtype=torch.bool)
    mask[:, observed] = True
    imputer = PPCA(latent_dim=weights[0].shape[1])
    # The jitter on I is a prior of precision 1 + 1e-6, which is the same model with W divided by sqrt(1 + 1e-6).
    imputer.weights = [(w / (1 + JITTER) ** 0.5).numpy() for w in weights]
    imputer.means, imputer.noise = [mu.numpy() for mu in means], torch.tensor(noise, dtype=torch.float64).numpy()
    imputer.dims = tuple(len(mu) for mu in means)
    imputed = torch.stack(imputer.impute(list(z.detach().unbind(dim=1)), mask), dim=1)
    return objective(z, mask, imputed)


@pytest.mark.parametrize("k", [3, 4])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_step_of_calmrl_as_released(k, pattern):
    observed = [m for m in range(k) if MODALITIES[m] in PATTERNS[pattern]]
    z, parameters = batch(k).requires_grad_(), generative(k, 12, 5)
    objective = objectives.get("calmrl")(MODALITIES[:k], 12, **RELEASED).double()
    objective.generator.manual_seed(7)
    found = our_step(objective, z, observed, parameters)
    expected = slow_step(objective, z, observed, parameters, torch.Generator().manual_seed(7))
    for name, term in zip(("loss", "alignment", "uniformity", "matching"), expected, strict=True):
        torch.testing.assert_close(found[name], term, rtol=0, atol=1e-8)
        moving = [z, *objective.matching.parameters()] if name in ("loss", "matching") else [z]
        gradients = (torch.autograd.grad(value, moving, retain_graph=True) for value in (found[name], term))
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_filling_with_its_jitter(pattern):
    observed = [m for m in range(4) if MODALITIES[m] in PATTERNS[pattern]]
    z, parameters = batch(4), generative(4, 12, 5)
    imputer = PPCA(latent_dim=5)
    imputer.weights, imputer.means = [w.numpy() for w in parameters[0]], [mu.numpy() for mu in parameters[1]]
    imputer.noise, imputer.dims = torch.tensor(parameters[2], dtype=torch.float64).numpy(), (12,) * 4
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[:, observed] = True
    ours = torch.stack(imputer.impute(list(z.unbind(dim=1)), mask), dim=1)
    theirs = torch.stack([torch.stack(filled(item, observed, *parameters)) for item in z])
    # Without the jitter the difference is of its size.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_step_of_pmrl_as_released():
    """One side a device and raw signs: on complete batches, both sides of uniformity have a gradient."""
    z, observed = batch(4).requires_grad_(), [0, 1, 2, 3]
    options = {k: v for k, v in RELEASED.items() if k not in ("spectrum_of", "detach_gathered", "detach_context")}
    objective = objectives.get("pmrl")(MODALITIES, 12, **options).double()
    found = objective(z, torch.ones(6, 4, dtype=torch.bool))
    sigma, anchors = zip(*[torch.linalg.svd(item.T, full_matrices=False)[1::-1] for item in z], strict=True)
    alignment = references.mean([-torch.log_softmax(values / TAU_ALIGNMENT, dim=0)[0] for values in sigma])
    leading = torch.stack([u[:, 0] for u in anchors])
    uniformity = functional.cross_entropy(leading @ leading.T / TAU_UNIFORMITY, torch.arange(6))
    for name, term in (("alignment", alignment), ("uniformity", uniformity)):
        torch.testing.assert_close(found[name], term, rtol=0, atol=1e-8)
        one, other = (torch.autograd.grad(value, z, retain_graph=True)[0] for value in (found[name], term))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)
    assert observed == list(range(4))


def candidates_held(objective: CrossObjective, z, mask):
    """Contrast of VAST, GRAM or TRIANGLE whose candidates are gathered without gradient: rows against held columns, both ways."""
    sides, held = objective.sides(z, mask), objective.sides(z.detach(), mask)
    there = objective.scores(sides._replace(candidates=held.candidates), objective.context(held).detach())
    back = objective.scores(held._replace(candidates=sides.candidates, shown=sides.shown), objective.context(sides)).T
    own = torch.arange(len(z))
    terms = [functional.cross_entropy(objective.scale() * s, own, label_smoothing=objective.smoothing) for s in (there, back)]
    return sum(terms) / 2


@pytest.mark.parametrize("name", ["vast", "gram", "triangle"])
def test_gathered_candidates_get_no_gradient(name):
    z, mask = batch(3).requires_grad_(), torch.ones(6, 3, dtype=torch.bool)
    plain, held = (objectives.get(name)(MODALITIES[:3], 12, alpha=0.0, detach_gathered=d).double() for d in (False, True))
    ours = held(z, mask)["loss"]
    torch.testing.assert_close(ours, plain(z, mask)["loss"], rtol=1e-12, atol=1e-12)
    (found,) = torch.autograd.grad(ours, z)
    (expected,) = torch.autograd.grad(candidates_held(held, z, mask), z)
    (true,) = torch.autograd.grad(plain(z, mask)["loss"], z)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert not torch.allclose(found, true)


def test_vast_trains_the_mean_over_its_subtasks():
    z, mask = batch(4), torch.ones(6, 4, dtype=torch.bool)
    mask[0, 2] = False
    subtasks = ["vision", "vision+audio", "vision+audio+subtitle"]
    objective = objectives.get("vast")(MODALITIES, 12, subtasks=subtasks).double()
    objective.generator.manual_seed(3)
    ours = objective(z, mask)
    generator = torch.Generator().manual_seed(3)
    maps = dict(zip(objective.fusion.subsets, objective.fusion.weights, strict=True))
    terms = []
    for subtask in subtasks:
        belongs = torch.tensor([m == 0 or MODALITIES[m] in subtask.split("+") for m in range(4)])
        shown = mask & belongs & (mask[:, 1:] | ~belongs[1:]).all(dim=1, keepdim=True)
        shown[:, 0] = mask[:, 0]
        contrast = references.vast(z, shown, 0, maps, 1 / objective.scale(), 0.1)
        others, asks, answers, queries, _ = references.sides(z, shown, 0)
        contexts = references.fused(z, shown, others, maps)
        logits = queries @ contexts.T * objective.scale()
        terms.append(
            contrast + 0.1 * references.matching(objective.matching, queries, contexts, asks & answers, generator, logits)
        )
    torch.testing.assert_close(ours["loss"], references.mean(terms), rtol=0, atol=1e-9)
    assert ours["skipped"] == 0
    for wrong, said in ((["vision+caption"], "names the query 'caption'"), (["visoin"], "there is no modality 'visoin'")):
        with pytest.raises(CalmrlError, match=said):
            objectives.get("vast")(MODALITIES, 12, subtasks=wrong)


@pytest.mark.parametrize(
    ("modalities", "spectrum_of", "places"),
    [
        (("vision", "audio", "caption", "subtitle"), ["caption", "vision", "audio"], [0, 1, 2]),
        (("text", "subtitle", "image"), ["caption", "vision", "audio"], [0, 2]),
        (("text", "image", "sound"), ["caption", "vision", "audio"], [0, 1, 2]),
        (("vision", "caption"), None, [0, 1]),
    ],
)
def test_modalities_of_the_spectrum(modalities, spectrum_of, places):
    objective = objectives.get("calmrl")(modalities, 8, spectrum_of=spectrum_of)
    assert objective.spectral == places
    assert objective.aligned == tuple(modalities[place] for place in places)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"spectrum_of": ["captoin", "vision"]}, "did you mean 'caption'"),
        ({"spectrum_of": ["thermal", "vision"]}, "fewer than 2 are among the modalities"),
        ({"detach_gathered": "yes"}, "detach_gathered must be true or false"),
        ({"detach_context": 1}, "detach_context must be true or false"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(CalmrlError, match=said):
        objectives.get("calmrl")(("vision", "audio", "caption"), 8, **options)
