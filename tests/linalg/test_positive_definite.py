"""The root of the latent precision, where squares fit into float64 and where they do not."""

import numpy as np
import torch

from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.linalg.positive_definite import inverse, precision_root


def draw(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(d, 6, generator=generator, dtype=torch.float64) * scale for d in (9, 4)]
    return weights, [torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.01, dtype=torch.float64)]


def test_it_is_the_cholesky_factor():
    weights, noise = draw(0, 1.0)
    dense = torch.eye(6, dtype=torch.float64) + sum(w.T @ w / s for w, s in zip(weights, noise, strict=True))
    torch.testing.assert_close(precision_root(weights, noise), torch.linalg.cholesky(dense), rtol=1e-12, atol=1e-12)


def test_it_exists_where_the_squares_drown_the_identity():
    (thin, _), noise = draw(1, 1e9)
    weights = [thin[:2]]  # rank 2 of 6: four directions have only the identity
    root = precision_root(weights, noise[:1])
    assert bool(torch.isfinite(root).all())
    assert bool((root.diagonal() > 0).all())
    # The determinant of I + A'A is that of I + AA', which is 2 x 2 and harmless.
    small = torch.eye(2, dtype=torch.float64) + weights[0] @ weights[0].T / noise[0]
    torch.testing.assert_close(2 * root.diagonal().log().sum(), torch.logdet(small), rtol=1e-6, atol=0)


def test_the_inverse_exists_where_the_squares_drown_the_identity():
    (thin, _), _ = draw(1, 1e9)
    large = thin[:2].T @ thin[:2]
    eye = torch.eye(6, dtype=torch.float64)
    found = inverse(torch.stack([eye + large, eye]))
    # Where the modality says nothing, the prior is left: the identity on four of six directions.
    torch.testing.assert_close(found[0], eye - torch.linalg.pinv(thin[:2]) @ thin[:2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], eye)


def test_a_modality_of_lower_rank_than_the_latents_can_be_refitted():
    """Six features in sixteen dimensions leave no noise; going on from there on slightly moved embeddings must not break."""
    rng = np.random.default_rng(0)
    thin = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 16))
    wide = thin @ rng.normal(size=(16, 16)) + rng.normal(size=(300, 16))
    mask = rng.random((300, 2)) < 0.8
    mask[~mask.any(axis=1), 0] = True
    ppca = PPCA(latent_dim=12)
    for step in range(4):
        moved = [thin * (1 + 0.05 * step), wide + 0.01 * step]
        ppca.fit(moved, mask, iterations=30, start=ppca if step else None)
        filled = ppca.impute(moved, mask)
        assert all(np.isfinite(part).all() for part in filled)
        assert np.isfinite(ppca.log_likelihoods).all()
