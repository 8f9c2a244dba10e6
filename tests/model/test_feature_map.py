"""Feature maps: scaling does what it says, every kind comes back from its description, joined ones give each part its own input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calmrl_lab.errors import CalmrlError
from calmrl_lab.linalg.kernel_pca import KernelPCA
from calmrl_lab.model.feature_map import Affine, Chain, Identity, SideBySide, described, fit_scaling, read


def rows(n=40, d=7, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 1


@pytest.mark.parametrize("how", ["scaled", "centred", "standardised"])
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.integers(2, 30), st.integers(1, 6), st.sampled_from([1e-6, 1.0, 1e6]))
def test_scaled_features_have_a_mean_squared_norm_of_one_whatever_their_scale(how, seed, n, d, scale):
    features = rows(n, d, seed)
    one, other = fit_scaling(features, how), fit_scaling(scale * features, how)
    assert float(one(features).square().sum(dim=1).mean()) == pytest.approx(1)
    assert torch.allclose(one(features), other(scale * features), atol=1e-9)


@pytest.mark.parametrize("how", ["centred", "standardised"])
def test_centring_makes_the_offset_irrelevant(how):
    features = rows()
    assert torch.allclose(fit_scaling(features, how)(features), fit_scaling(features + 50, how)(features + 50), atol=1e-9)


def test_standardising_makes_the_scale_of_a_coordinate_irrelevant_and_survives_a_constant_one():
    features = rows(50)
    features[:, 3] = 7.0
    stretched = features * torch.tensor([1.0, 10, 100, 1, 1e-3, 5, 1], dtype=torch.float64)
    plain, other = fit_scaling(features, "standardised"), fit_scaling(stretched, "standardised")
    assert torch.allclose(plain(features), other(stretched), atol=1e-9)
    # The constant coordinate keeps the common scale: an item that differs there is no outlier beyond all measure.
    assert float(plain.scale[3]) == pytest.approx(float((features - features.mean(0)).square().sum(1).mean().sqrt()))
    assert float(plain(features).square().sum(1).mean()) == pytest.approx(6 / 7)


def test_features_that_are_left_raw_are_the_same_tensor():
    features = rows()
    assert fit_scaling(features, "raw")(features) is features


def kinds():
    features = rows()
    kernel = KernelPCA.of(features, 5)
    chain = Chain((kernel, fit_scaling(kernel(features), "centred")))
    return [Identity(7), fit_scaling(features, "standardised"), kernel, chain, SideBySide((chain, Identity(7)))]


@pytest.mark.parametrize("one", kinds(), ids=lambda one: type(one).__name__)
def test_every_map_comes_back_from_its_description(one):
    features = rows(seed=1)
    description, tensors = described(one, "here/")
    assert all(name.startswith("here/") for name in tensors)
    again = read(description, tensors, "here/")
    assert (again.inputs, again.dim) == (one.inputs, one.dim) == (7, one(features).shape[1])
    assert torch.equal(again(features), one(features))


def test_maps_side_by_side_are_their_values_in_order():
    features, affine = rows(), fit_scaling(rows(), "scaled")
    both = SideBySide((Identity(7), affine))
    assert torch.equal(both(features), torch.cat([features, affine(features)], dim=1))


def test_what_cannot_be_saved_or_read_is_refused():
    class Odd(Affine):
        pass

    with pytest.raises(CalmrlError, match="maps of Odd cannot be saved"):
        described(Odd(torch.zeros(2), torch.ones(2)))
    with pytest.raises(CalmrlError, match="unknown feature map 'odd'"):
        read({"kind": "odd"}, {})


def test_an_empty_batch_stays_empty():
    assert all(one(rows()[:0].float()).shape == (0, one.dim) for one in kinds())
    assert np.isfinite(kinds()[-1](rows()).numpy()).all()
