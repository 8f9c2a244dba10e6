"""Projection heads, single and joint."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from feature_extractors.encoders.vast.networks.heads import own_heads, project


def test_heads_are_linear_maps_to_the_unit_sphere():
    weight = np.array([[2.0, 0.0], [0.0, 1.0]])
    # [3, 8] -> [6, 8], of length 10; zero stays zero.
    assert_allclose(project(np.array([[3.0, 8.0], [0.0, 0.0]]), weight), [[0.6, 0.8], [0.0, 0.0]])


def test_every_modality_hands_over_its_own_head(tensors):
    heads = {k: v.numpy() for k, v in tensors.items() if "encoder." not in k}
    for modality, name in (("vision", "v"), ("audio", "a"), ("subtitle", "s")):
        own = own_heads(heads, modality)
        assert list(own) == [f"contra_head_{name}"]
        assert_allclose(own[f"contra_head_{name}"], heads[f"contra_head_{name}.linear.weight"])
    caption = own_heads(heads, "caption")
    assert set(caption) >= {"contra_head_t", "contra_head_va.weight", "contra_head_vas.bias", "contra_temp"}
    assert all(values.dtype == np.float32 for values in caption.values())
