"""Noise of imputers: chosen on held-out items, and floor_noise where EM goes on from it on embeddings that have moved."""

import numpy as np
import pytest
import torch

from calmrl_lab.imputers import imputers
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.ppca.noise_scale import SCALES, floor_noise, held_out_errors, scale_noise


def moving(turns, n=400):
    """Embeddings as heads move: two modalities of six and five features in sixteen dimensions, so without noise, and a noisy one."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(n, 8))
    features = [latent @ rng.normal(size=(8, size)) + 0.3 * rng.normal(size=(n, size)) for size in (6, 5)]
    wide = latent @ rng.normal(size=(8, 12)) + rng.normal(size=(n, 12))
    heads = [rng.normal(size=(2, len(part[0]), 16)) for part in features]
    return [[*(f @ (h[0] + 0.15 * turn * h[1]) for f, h in zip(features, heads, strict=True)), wide] for turn in range(turns)]


def refreshed(start_of):
    """Relative error of the noisy modality imputed from the others after fifteen refreshes, each from what `start_of` makes of the last."""
    rng = np.random.default_rng(1)
    mask = rng.random((400, 3)) < 0.7
    mask[~mask.any(axis=1)] = True
    ppca = PPCA(latent_dim=8)
    for turn, embeddings in enumerate(moving(16)):
        ppca.fit(embeddings, mask, iterations=5 if turn else 50, start=start_of(ppca) if turn else None)
    filled, truth = ppca.impute(embeddings, np.tile([True, True, False], (400, 1)))[2], embeddings[2]
    return np.square(filled - truth).sum() / np.square(truth - truth.mean(axis=0)).sum()


@pytest.mark.slow
def test_modalities_without_noise_do_not_trap_em_when_their_embeddings_move():
    fresh = refreshed(lambda ppca: None)
    assert refreshed(lambda ppca: ppca) > 2 * fresh
    assert refreshed(floor_noise) < 1.1 * fresh


def test_loosening_raises_noise_only_where_it_is_small():
    embeddings, mask = moving(1)[0], np.ones((400, 3), dtype=bool)
    fitted = PPCA(14).fit(embeddings, mask)
    loose = floor_noise(fitted)
    spread = [np.square(e - e.mean(axis=0)).sum(axis=1).mean() / e.shape[1] for e in embeddings]
    for j in range(2):
        assert fitted.noise[j] < 0.02 * spread[j]
        assert loose.noise[j] == pytest.approx(0.1 * spread[j], rel=0.05)
    assert loose.noise[2] == fitted.noise[2]
    assert all((a == b).all() for a, b in zip(loose.weights, fitted.weights, strict=True))
    noisy = PPCA.from_state({**fitted.state(), "noise": np.array(spread)})
    assert floor_noise(noisy) is noisy
    mean = imputers.get("mean")().fit(embeddings, mask)
    assert floor_noise(mean) is mean


def test_the_noise_is_scaled_to_the_least_held_out_error():
    # More dimensions than items: the fitted noise is far too small for new ones.
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 40, 4))
    z = np.einsum("kdq,nq->nkd", weights, rng.normal(size=(90, 4))) + 3 * rng.normal(size=(90, 2, 40))
    train, held = [list(torch.from_numpy(part).unbind(1)) for part in (z[:30], z[30:])]
    fitted = PPCA(12).fit(train, torch.ones(30, 2, dtype=torch.bool))
    shown = torch.tensor([[True, False], [False, True], [True, True]])
    complete = torch.ones(60, 2, dtype=torch.bool)
    complete[:5, 0] = False
    tempered, scale = scale_noise(fitted, held, complete, shown)
    assert scale > 1

    def error(factor):
        scaled = PPCA.from_state({**fitted.state(), "noise": fitted.noise * factor})
        cases = (torch.tensor([True, False]).expand(55, -1), torch.tensor([False, True]).expand(55, -1))
        rows = [part[5:] for part in held]
        return sum(
            float((a - b).square().sum()) for mask in cases for a, b in zip(scaled.impute(rows, mask), rows, strict=True)
        )

    assert scale == min(SCALES, key=error)
    np.testing.assert_allclose(tempered.noise, fitted.noise * scale)
    # What is promised is what these items show.
    promised = held_out_errors(tempered, held, complete, shown)
    assert set(promised) == {(True, False), (False, True)}
    total = 55 * sum(errors.sum() for errors in promised.values())
    assert total == pytest.approx(error(scale), rel=1e-9)
    # Without complete held-out items, or without noise, there is nothing to choose.
    assert scale_noise(fitted, held, torch.zeros(60, 2, dtype=torch.bool), shown) == (fitted, 1.0)
    mean = imputers.get("mean")().fit(train, torch.ones(30, 2, dtype=torch.bool))
    assert scale_noise(mean, held, complete, shown) == (mean, 1.0)
