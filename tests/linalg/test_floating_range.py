"""Numbers near the ends of the floating-point range: scaled by powers of two, against float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calmrl_lab.linalg.floating_range import range_scale, to_float32, unit_rows


@given(st.floats(1e-300, 1e300))
def test_scales_are_powers_of_two_and_one_where_nothing_is_extreme(largest):
    unit = range_scale(largest)
    assert np.frexp(unit)[0] == 0.5
    assert unit == 1 or not 1e-9 < largest < 1e9
    assert 1e-13 < largest / unit < 1e13


@pytest.mark.parametrize("factor", [1.0, 1e30, 1e37, 1e-30, 1e-38])
def test_unit_rows_are_those_of_float64(factor):
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    rows[3] = 0
    wide = rows.double().numpy()
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    expected = np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)
    np.testing.assert_allclose(unit_rows(rows * factor).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_ordinary_rows_are_normalised_as_torch_does():
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unit_rows(rows), torch.nn.functional.normalize(rows, dim=1))


def test_ordinary_float64_features_become_the_nearest_float32():
    wide = np.array([[1 / 3, 0.0, -3e38], [np.nan, np.inf, 1e-50]])
    np.testing.assert_array_equal(to_float32(wide, "a"), wide.astype(np.float32))
