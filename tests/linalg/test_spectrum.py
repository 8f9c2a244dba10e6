"""The spectral kernel against a float64 SVD, and where the SVD has no answer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calmrl_lab.errors import CalmrlError
from calmrl_lab.linalg.spectrum import spectrum

sizes = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(2, 12), st.integers(0, 10_000))


def sets(b, k, d, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z = torch.nn.functional.normalize(torch.randn(b, k, d, generator=generator, dtype=torch.float64), dim=-1)
    mask = torch.rand(b, k, generator=generator) < 0.7
    return z.to(dtype), mask


def svd_reference(z, mask):
    """Per item, observed columns only, torch.linalg.svd, sign by the sum of the columns."""
    values, anchors = [], []
    for item, shown in zip(z, mask, strict=True):
        columns = item[shown].T
        s = torch.zeros(z.shape[1], dtype=z.dtype)
        u1 = torch.zeros(z.shape[2], dtype=z.dtype)
        if columns.shape[1]:
            u, sigma, _ = torch.linalg.svd(columns, full_matrices=False)
            u1 = u[:, 0] * (1.0 if u[:, 0] @ columns.sum(dim=1) >= 0 else -1.0)
            s = torch.cat([sigma, sigma.new_zeros(z.shape[1] - len(sigma))])
        values.append(s)
        anchors.append(u1)
    return torch.stack(values), torch.stack(anchors)


@given(sizes)
@settings(max_examples=60, deadline=None)
def test_values_anchors_and_gradients_equal_the_svd(size):
    z, mask = sets(*size)
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    values, anchor = spectrum(ours, mask)
    reference_values, reference_anchor = svd_reference(theirs, mask)
    torch.testing.assert_close(values, reference_values, atol=1e-9, rtol=0)
    s = reference_values.detach()
    distinct = (s[:, 0] - s[:, 1] > 1e-3) if s.shape[1] > 1 else torch.ones(len(s), dtype=torch.bool)
    # Two unit vectors more than a right angle apart: u1 is across their sum, and no side is right.
    decided = (reference_anchor * z.masked_fill(~mask.unsqueeze(-1), 0).sum(dim=1)).sum(dim=1).abs() > 1e-6
    distinct &= decided.detach() | (mask.sum(dim=1) == 0)
    torch.testing.assert_close(anchor[distinct], reference_anchor[distinct], atol=1e-9, rtol=0)
    generator = torch.Generator().manual_seed(size[3])
    weights_s = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    weights_u = torch.randn(anchor.shape, generator=generator, dtype=torch.float64)
    gaps = s[:, :-1] - s[:, 1:]
    # The SVD's own gradient fails where any two values meet; those items are compared on nothing but being finite.
    safe = distinct & mask.any(dim=1) & ((gaps > 1e-3) | (s[:, :-1] == 0)).all(dim=1) & (mask.sum(dim=1) <= z.shape[2])

    def scalar(v, u):
        return ((v * weights_s).sum(dim=1) + (u * weights_u).sum(dim=1))[safe].sum()

    if bool(safe.any()):
        scalar(values, anchor).backward()
        scalar(reference_values, reference_anchor).backward()
        torch.testing.assert_close(ours.grad[safe], theirs.grad[safe], atol=1e-9, rtol=1e-9)
    assert bool((anchor * z.masked_fill(~mask.unsqueeze(-1), 0).sum(dim=1)).sum(dim=1).ge(-1e-12).all())


@given(sizes)
@settings(max_examples=20, deadline=None)
def test_the_float32_anchor_is_the_float64_one_rounded(size):
    z, mask = sets(*size)
    values, anchor = spectrum(z, mask)
    values32, anchor32 = spectrum(z.float(), mask)
    torch.testing.assert_close(values32.double(), values, atol=3e-6, rtol=0)
    decided = (anchor * z.masked_fill(~mask.unsqueeze(-1), 0).sum(dim=1)).sum(dim=1).abs() > 1e-3
    clear = decided & (values[:, 0] - values[:, 1 % values.shape[1]] > 0.1)
    torch.testing.assert_close(anchor32[clear].double(), anchor[clear], atol=3e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["orthogonal", "copied", "opposite", "all copies", "one", "none", "zero vector"])
def test_gradients_are_finite_where_the_svd_has_none(case, dtype):
    eye = torch.eye(4, dtype=dtype)
    z, shown = {
        "orthogonal": (eye[:3], [1, 1, 1]),  # equal singular values
        "copied": (torch.stack([eye[0], eye[0], eye[1]]), [1, 1, 1]),  # a zero singular value
        "opposite": (torch.stack([eye[0], -eye[0], eye[1]]), [1, 1, 1]),  # no side to point to
        "all copies": (eye[:1].expand(3, 4), [1, 1, 1]),
        "one": (eye[:3], [0, 1, 0]),
        "none": (eye[:3], [0, 0, 0]),
        "zero vector": (torch.stack([eye[0], 0 * eye[0], eye[1]]), [1, 1, 1]),
    }[case]
    z = z.clone()[None].requires_grad_()
    values, anchor = spectrum(z, torch.tensor([shown], dtype=torch.bool))
    (values.sum() + (anchor * torch.arange(4, dtype=dtype)).sum()).backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(z.grad).all()
    expected = 0.0 if case == "none" else 1.0
    assert float(anchor.detach().norm()) == pytest.approx(expected, abs=1e-6)


def test_a_copied_modality_has_an_exact_zero():
    z, _ = sets(1, 3, 8, 0)
    z[:, 2] = z[:, 1]
    values, _ = spectrum(z, torch.ones(1, 3, dtype=torch.bool))
    assert float(values[0, 2]) < 1e-14


def test_hidden_entries_do_not_exist_even_as_nan():
    z, mask = sets(6, 4, 8, 3)
    mask[:, 0] = True
    spoiled = z.masked_fill(~mask.unsqueeze(-1), float("nan")).requires_grad_()
    values, anchor = spectrum(spoiled, mask)
    clean_values, clean_anchor = spectrum(z, mask)
    assert torch.equal(values, clean_values)
    assert torch.equal(anchor, clean_anchor)
    (values.sum() + anchor.sum()).backward()
    assert torch.isfinite(spoiled.grad).all()
    assert (spoiled.grad[~mask] == 0).all()


def test_finite_differences():
    z, mask = sets(3, 4, 6, 5)
    mask[:, :2] = True
    torch.autograd.gradcheck(lambda x: tuple(spectrum(x, mask)), z.requires_grad_(), atol=1e-6)


def test_half_precision_is_computed_in_float32():
    z, mask = sets(4, 3, 16, 1)
    values, anchor = spectrum(z.bfloat16(), mask)
    assert values.dtype == anchor.dtype == torch.float32
    reference, _ = spectrum(z.bfloat16().double(), mask)
    torch.testing.assert_close(values.double(), reference, atol=1e-5, rtol=0)


def test_raw_signs_are_those_of_the_svd():
    z, _ = sets(64, 3, 8, 2)
    mask = torch.ones(64, 3, dtype=torch.bool)
    raw = spectrum(z, mask, "raw").anchor
    torch.testing.assert_close(raw, torch.linalg.svd(z.mT, full_matrices=False)[0][:, :, 0], atol=1e-9, rtol=0)
    turned = (raw * spectrum(z, mask).anchor).sum(dim=1)
    assert set(turned.round().tolist()) == {-1.0, 1.0}


def test_wrong_shapes_are_one_sentence():
    with pytest.raises(CalmrlError, match=r"got \[2, 3\]"):
        spectrum(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(CalmrlError, match=r"bool mask"):
        spectrum(torch.zeros(2, 3, 4), torch.ones(2, 3))
