"""Few items with many dimensions: the same model as from d x d matrices, in the memory of n x d."""

import subprocess
import sys

import numpy as np
import pytest

from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.imputers.ppca_auto import AutoPPCA
from calmrl_lab.ppca import initialisation
from calmrl_lab.ppca import row_span as module


def few_items(n, dims, seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, 3))
    values = [latent @ rng.normal(size=(3, d)) + 0.3 * rng.normal(size=(n, d)) + rng.normal(size=d) for d in dims]
    mask = rng.random((n, len(dims))) < 0.7
    mask[~mask.any(axis=1), 0] = True
    return values, mask


@pytest.mark.parametrize("options", [{}, {"shared_noise": True}, {"ridge": 2.0}, {"initialisation": "complete"}])
def test_the_span_of_the_rows_gives_the_same_ppca(monkeypatch, options):
    values, mask = few_items(24, (300, 260, 280))
    whole = PPCA(latent_dim=3, **options).fit(values, mask, iterations=8)
    monkeypatch.setattr(module, "_DIMENSIONS", 10)
    monkeypatch.setattr(module, "_SHARE", 1.0)
    spanned = PPCA(latent_dim=3, **options).fit(values, mask, iterations=8)
    np.testing.assert_allclose(spanned.noise, whole.noise, rtol=1e-6)
    np.testing.assert_allclose(spanned.log_likelihoods, whole.log_likelihoods, rtol=1e-6)
    for a, b in zip(spanned.weights, whole.weights, strict=True):
        np.testing.assert_allclose(a @ a.T, b @ b.T, atol=1e-6 * np.abs(b @ b.T).max())
    for a, b in zip(spanned.impute(values, mask), whole.impute(values, mask), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_the_span_of_the_rows_gives_the_same_choice(monkeypatch):
    # Both from exact eigenvectors: power iteration stops at a start that depends on the coordinates.
    monkeypatch.setattr(initialisation, "_DENSE_UP_TO", 1000)
    values, mask = few_items(30, (300, 280))
    whole = AutoPPCA().fit(values, mask)
    monkeypatch.setattr(module, "_DIMENSIONS", 10)
    monkeypatch.setattr(module, "_SHARE", 1.0)
    spanned = AutoPPCA().fit(values, mask)
    assert spanned.choice.latent_dim == whole.choice.latent_dim
    assert spanned.gains == pytest.approx(whole.gains, abs=1e-6)
    for a, b in zip(spanned.impute(values, mask), whole.impute(values, mask), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_wide_features_of_few_items_need_no_square_matrix():
    script = """
import numpy as np, resource
from calmrl_lab.imputers.ppca_auto import AutoPPCA
rng = np.random.default_rng(0)
values = [rng.normal(size=(60, 20_000)).astype(np.float32) for _ in range(2)]
mask = rng.random((60, 2)) < 0.7
mask[~mask.any(axis=1)] = True
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
AutoPPCA().fit(values, mask).impute(values, mask)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # A 20,000 x 20,000 matrix is 3,052 MB.
    assert float(done.stdout) < 700
