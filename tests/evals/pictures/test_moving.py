"""Clips of the painting world scored without knowing their flow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regaze.evals.pictures.render import Picture
from regaze.evals.pictures.scorers import Moving
from regaze.evals.pictures.scorers.base import IMAGES
from regaze.evals.pictures.scorers.moving import frames_of
from regaze.evals.sandbox.painting.scenes import BACKGROUND, paint
from regaze.evals.sandbox.video.world import Clip, clips


def strip(frames: Any) -> Image.Image:
    return Picture(tuple(frames)).strip


def metrics(strips: list[Image.Image], prompts: list[str]) -> dict[str, float]:
    found = Moving().load("cpu").score(strips, prompts, strips)
    sums: dict[str, Any] = {key: np.array(sum(one[key] for one in found)) for key in found[0]}
    return {
        k: float(v) for k, v in Moving().metrics({**sums, IMAGES: np.array(len(found))}).items()
    }


def speed(clip: Clip, order: int = 1) -> float:
    """Mean way of an object from frame to frame, in pixels: two drawn units each."""
    places = np.array([[(o.cx, o.cy) for o in objects] for objects in clip.frames]) / 2
    return float(np.linalg.norm(np.diff(places, order, axis=0), axis=-1).mean())


def jerk(clip: Clip) -> float:
    """Mean change of an object's speed."""
    return speed(clip, order=2)


def test_the_worlds_own_clips_are_right() -> None:
    shown = clips("test", 6)
    found = metrics([strip(one.images) for one in shown], [one.prompt for one in shown])
    assert (found["right"], found["kept"], found["found"], found["flicker"]) == (1, 1, 1, 0)
    assert found["drift"] < 1e-3
    weights = [len(one.frames[0]) for one in shown]
    true = np.average([speed(one) for one in shown], weights=weights)
    assert found["motion"] == pytest.approx(true, abs=0.02)
    turned = np.average([jerk(one) for one in shown], weights=weights)
    assert found["jerk"] == pytest.approx(turned, abs=0.02)


def test_what_vanishes_stands_still_grows_or_flickers_is_seen() -> None:
    clip = next(one for one in clips("test", 20) if len(one.frames[0]) == 2)
    still = [clip.images[0]] * 8
    assert metrics([strip(still)], [clip.prompt])["motion"] == 0
    there_and_back = [clip.images[0], clip.images[1]] * 4
    found = metrics([strip(there_and_back)], [clip.prompt])
    assert found["jerk"] == pytest.approx(2 * found["motion"]) and found["jerk"] > 1
    lost = [*clip.images[:7], paint(clip.frames[7][:1])]
    found = metrics([strip(lost)], [clip.prompt])
    assert (found["right"], found["kept"], found["found"]) == (0, 0.5, 15 / 16)
    first, second = clip.frames[0]
    grown = [still[0], paint([replace(first, r=first.r * 1.2), second])]
    assert metrics([strip(grown)], [clip.prompt])["drift"] == pytest.approx(0.22, abs=0.05)
    brighter = np.asarray(still[0]).copy()
    brighter[(brighter == BACKGROUND).all(-1)] += 3
    flickering = [still[0], Image.fromarray(brighter)] * 4
    assert metrics([strip(flickering)], [clip.prompt])["flicker"] == pytest.approx(3, abs=0.1)


def test_strips_come_apart_and_other_sizes_are_refused() -> None:
    (clip,) = clips("test", 1)
    again = frames_of(strip(clip.images))
    assert [one.tobytes() for one in again] == [one.tobytes() for one in clip.images]
    with pytest.raises(ValueError, match="some times that wide, not 33 x 32"):
        frames_of(Image.new("RGB", (33, 32)))
    with pytest.raises(ValueError, match="unknown word 'fox'"):
        Moving().check(["a red fox"])
