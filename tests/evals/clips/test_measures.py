"""The measures of clips against examples worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from regaze.evals.clips.measures import (
    colour_drift,
    flicker,
    psnr,
    rmse,
    warping_error,
)
from regaze.evals.sandbox.video.warping import warp

Floats = NDArray[np.float64]


def clip_of(frames: int = 3, height: int = 5, width: int = 6) -> Floats:
    return np.random.default_rng(0).random((frames, height, width, 3))


def rolling(frames: int, dx: int) -> tuple[Floats, Floats]:
    """A picture that moves ``dx`` pixels to the right per frame, and its backward flow."""
    first = clip_of(1)[0]
    moved = np.stack([np.roll(first, dx * f, axis=1) for f in range(frames)])
    flow = np.zeros((frames - 1, *first.shape[:2], 2))
    flow[..., 0] = -dx
    return moved, flow


def test_a_flow_of_whole_pixels_warps_exactly() -> None:
    frames, flow = rolling(3, dx=2)
    warped = warp(frames[:-1], flow)
    np.testing.assert_array_equal(warped[:, :, 2:], frames[1:, :, 2:])
    assert not warped[:, :, :2].any()  # from outside


def test_a_flow_between_pixels_blends_them() -> None:
    frames = np.zeros((1, 2, 2, 1))
    frames[0, :, :, 0] = [[0.0, 1.0], [2.0, 3.0]]
    flow = np.zeros((1, 2, 2, 2))
    flow[0, 0, 0] = (0.25, 0.5)  # x, then y
    assert warp(frames, flow)[0, 0, 0, 0] == pytest.approx(0.25 + 2 * 0.5)


def test_a_clip_that_follows_its_flow_has_no_warping_error() -> None:
    frames, flow = rolling(4, dx=1)
    visible = np.ones(flow.shape[:3], bool)
    visible[:, :, 0] = False
    assert warping_error(frames, flow, visible) == 0
    assert warping_error(frames, np.zeros_like(flow), visible) > 0.1


def test_warping_error_is_the_mean_over_visible_pixels() -> None:
    frames = np.zeros((2, 1, 2, 3))
    frames[1, 0, 0] = (0.3, 0.0, 0.0)
    frames[1, 0, 1] = (0.9, 0.9, 0.9)
    flow = np.zeros((1, 1, 2, 2))
    both, first = np.array([[[True, True]]]), np.array([[[True, False]]])
    assert warping_error(frames, flow, both) == pytest.approx((0.1 + 0.9) / 2)
    assert warping_error(frames, flow, first) == pytest.approx(0.1)
    assert math.isnan(warping_error(frames, flow, ~both))


def test_flicker_looks_at_still_pixels_only() -> None:
    frames = np.zeros((3, 1, 2, 3))
    frames[1, 0, 0] = 0.2  # there and gone: two steps of 0.2
    frames[:, 0, 1] = np.array([0.0, 0.5, 1.0])[:, None]
    assert flicker(frames, np.array([[True, False]])) == pytest.approx(0.2)
    assert flicker(frames, np.array([[True, True]])) == pytest.approx((0.2 + 0.5) / 2)
    assert math.isnan(flicker(frames, np.array([[False, False]])))
    assert math.isnan(flicker(frames[:1], np.array([[True, True]])))


def test_colour_drift_follows_objects() -> None:
    frames = np.zeros((2, 1, 4, 3))
    shown = np.zeros((2, 2, 1, 4))
    # One object moves a pixel and keeps its colour, the other one stays and turns from red to blue.
    shown[0, 0, 0, 0] = shown[1, 0, 0, 1] = 1
    frames[0, 0, 0] = frames[1, 0, 1] = (0.0, 1.0, 0.0)
    shown[:, 1, 0, 3] = 0.5
    frames[0, 0, 3], frames[1, 0, 3] = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    assert colour_drift(frames, shown) == pytest.approx((0 + 2 / 3) / 2)
    assert colour_drift(frames, shown[:, :1]) == 0
    shown[1, 1] = 0
    assert math.isnan(colour_drift(frames, shown))


def test_rmse_and_psnr_of_a_known_difference() -> None:
    first = np.zeros((2, 2, 2, 3))
    second = first.copy()
    second[0, 0, 0] = 0.8  # 3 of 24 values
    assert rmse(first, second) == pytest.approx(0.8 * math.sqrt(1 / 8))
    assert psnr(first, second) == pytest.approx(-10 * math.log10(0.08))
    assert rmse(first, first) == 0
    assert psnr(first, first) == math.inf
