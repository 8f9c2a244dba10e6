"""The solver that never asks the host, against LAPACK."""

import pytest
import torch

from calmrl_lab.linalg import jacobi
from calmrl_lab.linalg.spectrum import spectrum


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("d", [2, 16])
def test_it_diagonalises(k, d, dtype):
    generator = torch.Generator().manual_seed(k)
    z = torch.randn(200, k, d, generator=generator, dtype=torch.float64)
    z[100:] = 0.01 * z[100:] + torch.randn(100, 1, d, generator=generator, dtype=torch.float64)  # nearly rank one
    z[:20, k - 1] = z[:20, 0]  # copied
    if k > 1:
        z[20:40, k // 2] = 0.0  # hidden
    gram = (z @ z.mT).to(dtype)
    vectors = jacobi.jacobi(gram)
    values = vectors.mT @ gram @ vectors
    scale = 30 * torch.finfo(dtype).eps
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(k, dtype=dtype).expand_as(gram), atol=scale, rtol=0)
    largest = gram.diagonal(dim1=1, dim2=2).sum(dim=1)
    off = values - torch.diag_embed(values.diagonal(dim1=1, dim2=2))
    # With more vectors than dimensions many eigenvalues are zero at once, and convergence is only linear.
    assert (off.abs().amax(dim=(1, 2)) / largest).max() < (scale if d >= k else max(scale, 1e-10))
    expected = torch.linalg.eigvalsh(gram.double()).flip(-1)
    found = values.diagonal(dim1=1, dim2=2).double()
    assert ((found - expected).abs().amax(dim=1) / largest).max() < scale


def test_matrices_that_need_nothing():
    eye = torch.eye(4, dtype=torch.float64).expand(3, -1, -1)
    assert torch.equal(jacobi.jacobi(eye).abs().sum(dim=1), torch.ones(3, 4, dtype=torch.float64))
    assert torch.isfinite(jacobi.jacobi(torch.zeros(2, 3, 3))).all()


def test_the_spectrum_is_the_same_on_either_road(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    z = torch.nn.functional.normalize(torch.randn(64, 4, 16, generator=generator, dtype=torch.float64), dim=-1)
    mask = torch.rand(64, 4, generator=generator) < 0.7
    first, second = z.clone().requires_grad_(), z.clone().requires_grad_()
    here = spectrum(first, mask)
    monkeypatch.setattr("calmrl_lab.linalg.spectrum.eigenvectors", jacobi.jacobi)
    there = spectrum(second, mask)
    torch.testing.assert_close(there.singular_values, here.singular_values, atol=1e-13, rtol=0)
    decided = (z.masked_fill(~mask.unsqueeze(-1), 0.0).sum(dim=1) * here.anchor.detach()).sum(dim=1).abs() > 1e-3
    torch.testing.assert_close(there.anchor[decided], here.anchor[decided], atol=1e-11, rtol=0)
    for result in (here, there):
        (result.singular_values.square().sum() + result.anchor[decided, 0].sum()).backward()
    torch.testing.assert_close(second.grad, first.grad, atol=1e-9, rtol=0)


def test_nan_does_not_stop_the_batch():
    gram = torch.eye(3).repeat(2, 1, 1)
    gram[0, 0, 0] = torch.nan
    assert torch.isfinite(jacobi.eigenvectors(gram)[1]).all()
