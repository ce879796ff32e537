"""Clips: the motion that they claim is the motion that they show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from regaze.evals.clips.measures import colour_drift, flicker, warping_error
from regaze.evals.clips.task import as_array
from regaze.evals.sandbox.painting.checker import check
from regaze.evals.sandbox.painting.scenes import HELD_OUT, combinations
from regaze.evals.sandbox.video.warping import warp
from regaze.evals.sandbox.video.world import FASTEST, Clip, clip, clips

MANY = clips("validation", 20)


def solid(shown: Clip) -> NDArray[np.bool_]:
    """Pixels that one thing alone fills."""
    ground = 1 - shown.silhouettes.sum(1, keepdims=True)
    return np.asarray((np.concatenate([ground, shown.silhouettes], 1) > 1 - 1e-9).any(1))


@pytest.mark.parametrize("shown", MANY, ids=lambda shown: shown.key)
def test_whole_pixel_flow_warps_each_frame_into_the_next(shown: Clip) -> None:
    frames = as_array(shown.images)
    error = np.abs(frames[1:] - warp(frames[:-1], shown.flow)).max(-1)
    assert error[shown.visible].max() == 0
    assert warping_error(frames, shown.flow, shown.visible) == 0
    assert flicker(frames, shown.still) == 0
    assert colour_drift(frames, shown.silhouettes) < 1e-12
    assert shown.visible.mean() > 0.8


def test_flow_between_pixels_warps_what_is_solid() -> None:
    for shown in clips("validation", 10, grain=0.25):
        frames, full = as_array(shown.images), solid(shown)
        sources = warp(full[:-1, ..., None].astype(np.float64), shown.flow)[..., 0]
        known = shown.visible & full[1:] & (sources > 1 - 1e-6)
        error = np.abs(frames[1:] - warp(frames[:-1], shown.flow)).max(-1)
        assert error[known].max() < 1e-12
        assert warping_error(frames, shown.flow, shown.visible) < 0.01  # the rims


def test_what_was_hidden_isnt_visible() -> None:
    shown = clip("validation", 0)
    moved = shown.flow.any((1, 2, 3))
    assert moved.any()
    uncovered = (shown.owners[:-1] != 0) & (shown.owners[1:] == 0)
    assert uncovered.any()
    assert not (uncovered & shown.visible).any()


@pytest.mark.parametrize("grain", [1.0, 0.25])
def test_objects_stay_in_the_frame_and_apart(grain: float) -> None:
    for shown in clips("test", 20, grain=grain, frames=30):
        for old, new in zip(shown.frames, shown.frames[1:], strict=False):
            for a, b in zip(old, new, strict=True):
                steps = ((b.cx - a.cx) / 2 / grain, (b.cy - a.cy) / 2 / grain)
                assert all(abs(s - round(s)) < 1e-9 for s in steps)
                assert max(map(abs, steps)) * grain <= FASTEST + 1e-9
                assert b.r <= b.cx <= 64 - b.r
                assert b.r <= b.cy <= 64 - b.r
            gaps = [
                math.dist((a.cx, a.cy), (b.cx, b.cy)) - a.r - b.r
                for a in new
                for b in new
                if a is not b
            ]
            assert all(gap > 0 for gap in gaps)


def test_frames_show_what_the_prompt_says() -> None:
    for shown in MANY[:5]:
        assert all(v.counts.clean for v in check(shown.images, [shown.wanted] * 8))


def test_clips_follow_from_split_and_number() -> None:
    assert clip("test", 3) == clip("test", 3)
    assert clip("test", 3).frames != clip("validation", 3).frames
    assert clip("test", 3).frames != clip("test", 4).frames
    kinds = {len(c.wanted.kinds) for c in MANY}
    assert kinds == {1, 2, 3}
    pair = next(c for c in MANY if len(c.wanted.kinds) == 2).wanted.kinds
    assert any(set(pair) == set(known) for known in combinations("validation", 2))
    assert not HELD_OUT & {kind for c in MANY for kind in c.wanted.kinds}


def test_shapes_of_what_a_clip_gives() -> None:
    shown = clip("test", 1, frames=3)
    objects = len(shown.wanted.kinds)
    assert [image.size for image in shown.images + shown.normals] == [(32, 32)] * 6
    assert shown.flow.shape == (2, 32, 32, 2)
    assert shown.visible.shape == (2, 32, 32)
    assert shown.silhouettes.shape == (3, objects, 32, 32)
    assert shown.still.shape == (32, 32)
    alone = clip("test", 1, frames=1)
    assert alone.flow.shape == (0, 32, 32, 2)
    assert alone.visible.shape == (0, 32, 32)


def test_impossible_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a frame at least"):
        clip("test", 0, frames=0)
    with pytest.raises(ValueError, match="0 < grain <= fastest"):
        clip("test", 0, grain=3.0)
    with pytest.raises(ValueError, match="unknown split"):
        clip("held-out", 0)
