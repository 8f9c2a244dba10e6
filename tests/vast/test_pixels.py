"""Frames to pixels: the exact resize, crop and scale of the released transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.nn import functional

from feature_extractors.encoders.vast.preprocessing.pixels import MEAN, STD, resized, short_side, transform


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (2, 90, 160, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (45, 80), (91, 33), (90, 160), (1, 1)])
def test_resize_is_bilinear_without_antialias(frames, height, width):
    expected = functional.interpolate(
        torch.from_numpy(frames.transpose(0, 3, 1, 2).astype(np.float64)),
        (height, width),
        mode="bilinear",
        align_corners=False,
        antialias=False,
    )
    for frame, whole in zip(frames, expected.numpy().transpose(0, 2, 3, 1), strict=True):
        assert_allclose(resized(frame, height, width, range(height), range(width)), whole, atol=1e-10)
        rows, columns = range(height // 3, height), range(width // 4, width // 4 + 1 + width // 3)
        window = whole[rows.start : rows.stop, columns.start : columns.stop]
        assert_allclose(resized(frame, height, width, rows, columns), window, atol=1e-10)


def test_squash_scales_resizes_and_normalises_in_this_order(frames):
    scaled = torch.from_numpy(frames.transpose(0, 3, 1, 2) / 255.0)
    expected = functional.interpolate(scaled, (224, 224), mode="bilinear", align_corners=False, antialias=False)
    expected = ((expected - torch.from_numpy(MEAN)[:, None, None]) / torch.from_numpy(STD)[:, None, None]).float()
    got = transform(frames, "squash")
    assert got.dtype == np.float32
    assert_allclose(got, expected.numpy(), atol=5e-7)


def test_crop_keeps_the_aspect_and_takes_the_centre(frames):
    scaled = torch.from_numpy(frames.transpose(0, 3, 1, 2) / 255.0)
    # 90 x 160: the short side becomes 224, the long one int(224 * 160 / 90) = 398, and (398 - 224) / 2 = 87 columns fall away.
    expected = functional.interpolate(scaled, (224, 398), mode="bilinear", align_corners=False, antialias=False)[..., 87:311]
    expected = ((expected - torch.from_numpy(MEAN)[:, None, None]) / torch.from_numpy(STD)[:, None, None]).float()
    assert_allclose(transform(frames, "crop"), expected.numpy(), atol=5e-7)


@pytest.mark.parametrize(
    ("size", "expected"), [((90, 160), (224, 398)), ((160, 90), (398, 224)), ((100, 100), (224, 224)), ((240, 427), (224, 398))]
)
def test_the_long_side_is_truncated(size, expected):
    assert short_side(*size, 224) == expected


def test_a_white_frame_is_the_normalised_one():
    got = transform(np.full((1, 224, 224, 3), 255, np.uint8))
    assert_allclose(got[0, :, 0, 0], (1 - MEAN) / STD, atol=1e-6)
