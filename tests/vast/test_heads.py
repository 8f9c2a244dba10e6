"""Projection heads, single and joint."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders.vast.networks.heads import own_heads, project, project_jointly


def test_heads_are_linear_maps_to_the_unit_sphere():
    weight = np.array([[2.0, 0.0], [0.0, 1.0]])
    # [3, 8] -> [6, 8], of length 10; zero stays zero.
    assert_allclose(project(np.array([[3.0, 8.0], [0.0, 0.0]]), weight), [[0.6, 0.8], [0.0, 0.0]])


def test_joint_heads_concatenate_vision_audio_subtitle_and_add_a_bias():
    features = {"subtitle": np.array([[3.0]]), "vision": np.array([[1.0]]), "audio": np.array([[2.0]])}
    heads = {
        "contra_head_vas.weight": np.array([[1.0, 10.0, 100.0], [0.0, 0.0, 0.0]]),
        "contra_head_vas.bias": np.array([0.0, 321.0]),
    }
    # 1 + 20 + 300 = 321 in the first coordinate, the bias in the second.
    assert_allclose(project_jointly(features, heads, "vas"), [[np.sqrt(0.5), np.sqrt(0.5)]])
    with pytest.raises(CalmrlError, match="needs 'subtitle'"):
        project_jointly({"vision": features["vision"]}, heads, "vs")
    with pytest.raises(CalmrlError, match="unknown joint head"):
        project_jointly(features, heads, "tv")


def test_every_modality_hands_over_its_own_head(tensors):
    heads = {k: v.numpy() for k, v in tensors.items() if "encoder." not in k}
    for modality, name in (("vision", "v"), ("audio", "a"), ("subtitle", "s")):
        own = own_heads(heads, modality)
        assert list(own) == [f"contra_head_{name}"]
        assert_allclose(own[f"contra_head_{name}"], heads[f"contra_head_{name}.linear.weight"])
    caption = own_heads(heads, "caption")
    assert set(caption) >= {"contra_head_t", "contra_head_va.weight", "contra_head_vas.bias", "contra_temp"}
    assert all(values.dtype == np.float32 for values in caption.values())
