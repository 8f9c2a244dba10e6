"""PPCA by gradient: the plug-in loss against a loop, and what leaving the posterior covariance out costs beside EM."""

import numpy as np
import pytest
import torch

from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers.ppca_gradient import plug_in_loss


def generated(n=400, dims=(12, 10, 11), q=3, noise=0.6, seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, q))
    weights = [np.random.default_rng(100 + j).normal(size=(q, d)) * 0.7 for j, d in enumerate(dims)]
    return [latent @ w + j + noise * rng.normal(size=(n, w.shape[1])) for j, w in enumerate(weights)]


def hidden(n, k, seed=1):
    mask = np.random.default_rng(seed).random((n, k)) < 0.7
    mask[~mask.any(axis=1), 0] = True
    return mask


def error(imputer, embeddings, mask):
    filled = imputer.impute(embeddings, mask)
    return sum(np.square(f - e)[~mask[:, j]].sum() for j, (f, e) in enumerate(zip(filled, embeddings, strict=True)))


def test_the_plug_in_loss():
    generator = torch.Generator().manual_seed(0)
    dims, q, n = (4, 3), 2, 7
    values = [torch.randn(n, d, generator=generator, dtype=torch.float64) for d in dims]
    weights = [torch.randn(d, q, generator=generator, dtype=torch.float64).requires_grad_() for d in dims]
    means = [torch.randn(d, generator=generator, dtype=torch.float64).requires_grad_() for d in dims]
    log_sigma = torch.tensor([-0.3, 0.2], dtype=torch.float64, requires_grad=True)
    seen = torch.tensor([[True, True], [True, False], [False, True], [True, True], [False, False], [True, False], [True, True]])
    ours = plug_in_loss(values, seen, weights, means, log_sigma)
    slow = torch.zeros((), dtype=torch.float64)
    for j in range(2):
        squares, counted = torch.zeros((), dtype=torch.float64), 0
        for i in range(n):
            if not seen[i, j]:
                continue
            precision, right = torch.eye(q, dtype=torch.float64), torch.zeros(q, dtype=torch.float64)
            for m in range(2):
                if seen[i, m]:
                    s2 = torch.exp(2 * log_sigma[m]).detach()
                    precision = precision + weights[m].detach().T @ weights[m].detach() / s2
                    right = right + weights[m].detach().T @ (values[m][i] - means[m].detach()) / s2
            latent = torch.linalg.solve(precision, right)
            squares, counted = squares + (values[j][i] - weights[j] @ latent - means[j]).square().sum(), counted + dims[j]
        slow = slow + squares / counted / (2 * torch.exp(2 * log_sigma[j])) + log_sigma[j] + 0.5 * np.log(2 * np.pi)
    torch.testing.assert_close(ours, slow, rtol=0, atol=1e-10)
    moving = [*weights, *means, log_sigma]
    for one, other in zip(torch.autograd.grad(ours, moving), torch.autograd.grad(slow, moving), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_at_the_true_dimension_it_fills_about_as_em_does():
    embeddings = generated()
    mask = hidden(400, 3)
    em = imputers.get("ppca")(latent_dim=3).fit(embeddings, mask)
    gradient = imputers.get("ppca-gradient")(latent_dim=3, steps=400).fit(embeddings, mask)
    assert error(gradient, embeddings, mask) < 1.15 * error(em, embeddings, mask)


@pytest.mark.slow
def test_a_latent_vector_that_is_too_long_costs_it_more_than_em():
    train, test = generated(120), generated(400, seed=9)
    mask, shown = hidden(120, 3), hidden(400, 3, seed=8)
    cost = {}
    for name, options in (("ppca", {}), ("ppca-gradient", {"steps": 400, "learning_rate": 0.03})):
        short, long = (error(imputers.get(name)(latent_dim=q, **options).fit(train, mask), test, shown) for q in (3, 15))
        cost[name] = long / short
    assert cost["ppca-gradient"] > 1.1 * cost["ppca"]


def test_it_goes_on_from_a_start():
    embeddings, mask = generated(80), hidden(80, 3)
    first = imputers.get("ppca-gradient")(latent_dim=3, steps=200).fit(embeddings, mask)
    further = imputers.get("ppca-gradient")(latent_dim=3, steps=1, learning_rate=1e-9).fit(embeddings, mask, start=first)
    for a, b in zip(first.weights, further.weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_too_many_latent_dimensions():
    with pytest.raises(CalmrlError, match="latent_dim is 40, but the modalities have only 33 dimensions"):
        imputers.get("ppca-gradient")(latent_dim=40).fit(generated(10), np.ones((10, 3), dtype=bool))
