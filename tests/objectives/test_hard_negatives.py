"""How hard the negatives of matching are: each system's rule of drawing against its released one, and how many items it leaves to choose from."""

import pytest
import torch
from objectives import references
from objectives.test_contract import NAMES, build
from torch.nn import functional

from calmrl_lab.errors import CalmrlError
from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms import query_to_item, spectral
from calmrl_lab.objectives.terms.matching import negative_weights

CAPTION = 2
BATCH = 256


def released(name, z):
    """Weights [B, B] of the released code: softmax of similarity / 0.07 over the batch, plus 1e-4, the item itself left out."""
    others = [z[:, m] for m in range(z.shape[1]) if m != CAPTION]
    context = functional.normalize(sum(others), dim=1)
    mask = torch.ones(z.shape[:2], dtype=torch.bool)
    scores = {
        "pmrl": lambda: z[:, CAPTION] @ context.T,
        "calmrl": lambda: z[:, CAPTION] @ context.T,
        "vast": lambda: z[:, CAPTION] @ context.T,
        "gram": lambda: references.gram_scores(z, mask, CAPTION, 0.0),
        "triangle": lambda: references.triangle_scores(z, mask, CAPTION, [0, 1], "squared", 0.0),
    }[name]()
    weights = torch.softmax(scores / 0.07, dim=1) + 1e-4
    return weights.fill_diagonal_(0.0)


def ours(name, z, monkeypatch, **options):
    """Weights [B, B] that the objective draws a negative context by."""
    found = {}

    def recorded(head, queries, contexts, able, generator, logits, same=None):
        own = torch.eye(len(able), dtype=torch.bool)
        found["weights"] = negative_weights(logits, able, able.unsqueeze(0) & ~own)
        return logits.new_zeros(())

    for place in (query_to_item, spectral):
        monkeypatch.setattr(place, "matching_loss", recorded)
    build(name, z.shape[1], z.shape[2], **options)(z, torch.ones(z.shape[:2], dtype=torch.bool))
    return found["weights"]


def effective(weights):
    """Effective number of candidates: the exponential of the entropy, mean over the rows."""
    shares = weights / weights.sum(dim=1, keepdim=True)
    return float((-(shares * shares.clamp_min(1e-300).log()).sum(dim=1)).exp().mean())


def aligned(count, k=3, d=64):
    """Unit embeddings whose modalities agree about half, in a cone, as those of trained heads do."""
    generator = torch.Generator().manual_seed(0)
    cone, item = (torch.randn(n, 1, d, generator=generator, dtype=torch.float64) for n in (1, count))
    noise = torch.randn(count, k, d, generator=generator, dtype=torch.float64)
    return functional.normalize(0.7 * cone + item + 0.8 * noise, dim=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pmrl", "calmrl", "vast", "gram", "triangle"])
def test_negatives_are_drawn_by_the_released_rule(name, monkeypatch):
    z = aligned(BATCH)
    options = {"epsilon": 0.0} if name in ("gram", "triangle") else {}
    expected, weights = released(name, z), ours(name, z, monkeypatch, **options)
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=1e-9)
    assert effective(weights) == pytest.approx(effective(expected), rel=1e-6)
    # What a similarity without a temperature leaves to choose from is nearly all of the 255.
    bare = ours(name, z, monkeypatch, negative_temperature=1.0, **options)
    assert effective(weights) < 190 < 250 < effective(bare)


@pytest.mark.parametrize("name", ["pmrl", "calmrl", "vast", "gram", "triangle", "scalar"])
def test_a_temperature_sets_how_hard_negatives_are(name, monkeypatch):
    z = aligned(64)
    hard, soft = (effective(ours(name, z, monkeypatch, negative_temperature=t)) for t in (0.1, 10.0))
    assert hard < 0.85 * soft
    assert soft > 60


def test_a_learned_temperature_is_that_of_the_negatives(monkeypatch):
    z = aligned(64)
    cold, warm = (ours("gram", z, monkeypatch, temperature=t) for t in (0.05, 0.5))
    assert effective(cold) < effective(warm)
    torch.testing.assert_close(warm, ours("gram", z, monkeypatch, negative_temperature=0.5), rtol=1e-6, atol=1e-12)


def test_items_that_do_not_take_part_take_no_share():
    logits = torch.zeros(3, 3)
    logits[:, 2] = 100.0
    able = torch.tensor([True, True, False])
    weights = negative_weights(logits, able, able.unsqueeze(0) & ~torch.eye(3, dtype=torch.bool))
    assert weights[0].tolist() == pytest.approx([0.0, 0.5 + 1e-4, 0.0])
    nothing = torch.zeros(3, dtype=torch.bool)
    assert torch.isfinite(negative_weights(logits, nothing, nothing.unsqueeze(0).expand(3, 3))).all()


@pytest.mark.parametrize("name", ["pmrl", "calmrl", "vast", "gram", "triangle", "scalar"])
def test_a_temperature_that_makes_no_sense(name):
    with pytest.raises(CalmrlError, match="negative_temperature must be a finite number above 0, got 0"):
        objectives.get(name)(NAMES[:3], 6, negative_temperature=0)
