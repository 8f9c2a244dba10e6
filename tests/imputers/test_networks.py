"""Rivals that are networks: their losses against slow formulations item by item, and what they learn from rows with gaps."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers._networks import hide_at_random

DIMS = (5, 3, 4)
NETWORKS = ("mvae", "mopoe", "context", "attention")


def example(n=9, seed=0):
    """(values of three modalities, float64, zeros in the gaps; what is shown; an imputer's generator)."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.rand(n, 3, generator=generator) < 0.6
    seen[0], seen[1] = True, torch.tensor([True, False, False])
    seen[~seen.any(dim=1), 1] = True
    values = [
        torch.randn(n, d, generator=generator, dtype=torch.float64).masked_fill(~seen[:, [j]], 0.0) for j, d in enumerate(DIMS)
    ]
    return values, seen


def built(name, dropout=0.0):
    imputer = imputers.get(name)(hidden=8, dropout=dropout)
    imputer.network = imputer.build(DIMS, torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        for parameter in imputer.network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return imputer


def surprise(value, mean, log_variance):
    """-log N(value; mean, e^log_variance) a coordinate, one item, coordinate by coordinate."""
    log_variance = log_variance.expand(len(value))
    terms = [
        0.5 * ((v - m) ** 2 / lv.exp().clamp_min(1e-6) + lv + math.log(2 * math.pi))
        for v, m, lv in zip(value, mean, log_variance, strict=True)
    ]
    return sum(terms) / len(terms)


def mlp(layer, x):
    h = functional.gelu(functional.layer_norm(layer.first(x), (layer.first.out_features,), layer.norm.weight, layer.norm.bias))
    return layer.last(h)


def subsets_of(shown):
    there = [j for j in range(3) if shown[j]]
    return [[j for place, j in enumerate(there) if number >> place & 1] for number in range(1, 2 ** len(there))]


def posterior(network, item, subset):
    """(mean, variance) of the product of the prior and the experts of `subset`."""
    precision, weighted = torch.ones(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64)
    for j in subset:
        state = mlp(network.trunks[j], item[j])
        sharp = torch.exp(-network.log_variances[j](state).clamp(-8, 8)).clamp_max(1e6)
        precision, weighted = precision + sharp, weighted + sharp * network.means[j](state)
    return weighted / precision, 1 / precision


@pytest.mark.parametrize("name", ["mvae", "mopoe"])
def test_the_loss_of_a_variational_imputer(name):
    values, seen = example()
    imputer = built(name)
    ours = imputer.loss(values, seen, torch.Generator().manual_seed(3))
    generator, network = torch.Generator().manual_seed(3), imputer.network
    # Ours draws for the whole batch at once, one subset after the other; the twin reads the same draws.
    order = [[0, 1, 2]] if name == "mvae" else [[m for m in range(3) if number >> m & 1] for number in range(1, 8)]
    drawn = torch.randn(len(order), len(seen), 64, generator=generator).double()
    draws = {tuple(subset): rows for subset, rows in zip(order, drawn, strict=True)}
    losses = []
    for i, shown in enumerate(seen):
        item, there = [value[i] for value in values], [j for j in range(3) if shown[j]]
        terms = []
        for subset in [there] if name == "mvae" else subsets_of(shown):
            mean, variance = posterior(network, item, subset)
            latent = mean + variance.sqrt() * draws[(0, 1, 2) if name == "mvae" else tuple(subset)][i]
            parts = [surprise(item[j], mlp(network.decoders[j], latent), network.noise[j]) for j in there]
            kl = 0.5 * (variance + mean**2 - 1 - variance.log()).mean()
            terms.append(sum(parts) / len(parts) + kl)
        losses.append(sum(terms) / len(terms))
    torch.testing.assert_close(ours, sum(losses) / len(losses), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["mvae", "mopoe"])
def test_what_a_variational_imputer_fills(name):
    values, seen = example()
    imputer = built(name)
    found, network = imputer.predict(values, seen), imputer.network
    for i, shown in enumerate(seen):
        item, there = [value[i] for value in values], [j for j in range(3) if shown[j]]
        latents = [posterior(network, item, subset)[0] for subset in ([there] if name == "mvae" else subsets_of(shown))]
        for j in range(3):
            expected = sum(mlp(network.decoders[j], latent) for latent in latents) / len(latents)
            torch.testing.assert_close(found[j][i], expected, rtol=0, atol=1e-6)


def context(network, item, given, target):
    mean = sum(mlp(network.encoders[m], item[m]) + network.places[m] for m in given) / len(given)
    predicted, log_variance = mlp(network.predictors[target], torch.cat([mean, network.places[target]])).chunk(2)
    return predicted, log_variance.clamp(-8, 8)


def attention(network, item, given, target):
    tokens = [network.lifts[m](item[m]) + network.places[m] for m in given]
    asked, read = network.ask(network.queries[target]).chunk(4), []
    for head in range(4):
        keys, said = ([layer(token).chunk(4)[head] for token in tokens] for layer in (network.key, network.value))
        weights = torch.softmax(torch.stack([asked[head] @ key for key in keys]) / len(asked[head]) ** 0.5, dim=0)
        read.append(sum(w * v for w, v in zip(weights, said, strict=True)))
    return mlp(network.predictors[target], network.out(torch.cat(read))), network.noise[target]


@pytest.mark.parametrize(("name", "slow"), [("context", context), ("attention", attention)])
def test_predictors(name, slow):
    values, seen = example()
    imputer = built(name)
    ours, filled = imputer.loss(values, seen, torch.Generator()), imputer.predict(values, seen)
    losses = []
    for i, shown in enumerate(seen):
        item, there = [value[i] for value in values], [j for j in range(3) if shown[j]]
        if len(there) >= 2:
            terms = [surprise(item[j], *slow(imputer.network, item, [m for m in there if m != j], j)) for j in there]
            losses.append(sum(terms) / len(terms))
        for j in range(3):
            torch.testing.assert_close(filled[j][i], slow(imputer.network, item, there, j)[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours, sum(losses) / len(losses), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_it_learns_from_rows_with_gaps(name):
    """No row is complete: what is filled must come from pairs, and be better than the mean."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(600, 2))
    embeddings = [latent @ np.random.default_rng(d).normal(size=(2, d)) + 0.2 * rng.normal(size=(600, d)) for d in (6, 5, 4)]
    mask = np.ones((600, 3), dtype=bool)
    mask[np.arange(600), np.arange(600) % 3] = False
    shown = np.tile([True, True, False], (600, 1))
    imputer = imputers.get(name)(hidden=32, epochs=20).fit(embeddings, mask)
    filled, truth = imputer.impute(embeddings, shown)[2], embeddings[2]
    assert np.square(filled - truth).sum() < 0.5 * np.square(truth - truth.mean(axis=0)).sum()


def test_some_subsets_a_step_teach_as_all_do_on_average():
    values, seen = example()
    imputer = built("mopoe")
    everything = torch.stack([imputer.loss(values, seen, torch.Generator().manual_seed(n)) for n in range(20)]).mean()
    imputer.max_subsets = 3
    some = torch.stack([imputer.loss(values, seen, torch.Generator().manual_seed(n)) for n in range(200)]).mean()
    torch.testing.assert_close(some, everything, rtol=0.1, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_seed_decides_everything(name):
    embeddings = [np.random.default_rng(d).normal(size=(40, d)) for d in DIMS]
    mask = np.random.default_rng(0).random((40, 3)) < 0.7
    mask[0] = True
    torch.manual_seed(0)
    first = imputers.get(name)(hidden=8, epochs=3, seed=4).fit(embeddings, mask).impute(embeddings, mask)
    before = torch.random.get_rng_state()
    second = imputers.get(name)(hidden=8, epochs=3, seed=4).fit(embeddings, mask).impute(embeddings, mask)
    assert torch.equal(before, torch.random.get_rng_state())
    other = imputers.get(name)(hidden=8, epochs=3, seed=5).fit(embeddings, mask).impute(embeddings, mask)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_an_item_that_shows_nothing_gets_the_mean(name):
    embeddings = [3.0 + np.random.default_rng(d).normal(size=(40, d)) for d in DIMS]
    mask = np.ones((40, 3), dtype=bool)
    mask[7] = False
    filled = imputers.get(name)(hidden=8, epochs=1).fit(embeddings, mask).impute(embeddings, mask)
    for value, truth in zip(filled, embeddings, strict=True):
        np.testing.assert_allclose(value[7], truth[mask[:, 0]].mean(axis=0), rtol=1e-6)


def test_subsets_of_many_modalities_are_refused():
    embeddings = [np.random.default_rng(j).normal(size=(5, 2)) for j in range(9)]
    with pytest.raises(CalmrlError, match="at most 8 modalities, got 9"):
        imputers.get("mopoe")().fit(embeddings, np.ones((5, 9), dtype=bool))


def test_hiding_never_shows_and_always_leaves_one():
    seen = torch.rand(500, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    shown = hide_at_random(seen, torch.Generator().manual_seed(1))
    assert not (shown & ~seen).any()
    assert (shown.any(dim=1) == seen.any(dim=1)).all()
    assert (shown != seen).any()
