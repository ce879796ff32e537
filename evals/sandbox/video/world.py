"""Clips: scenes of the painting world whose objects move, with everything about the motion known.

A clip is numbered like a scene and follows from its split and number alone. Its objects move
straight ahead and turn back at the edges and at each other, so that none ever hides another;
what they hide and uncover is the ground.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regaze.evals.sandbox import drawing
from regaze.evals.sandbox.drawing import Object
from regaze.evals.sandbox.painting.prompts import Kind, Wanted
from regaze.evals.sandbox.painting.scenes import SIZE, SPLITS, combinations, paint, right_picture
from regaze.evals.sandbox.video import FRAMES
from regaze.evals.sandbox.video.structure import Floats, silhouettes, structure
from regaze.evals.sandbox.video.warping import warp
from regaze.hooks.checks import check_choice

GRAIN = 1.0
"""Speeds are multiples of this, in pixels per frame; whole ones move pixels without blending."""
FASTEST = 2.0
"""Largest speed along either axis, in pixels per frame."""

_COUNTS = (1, 2, 2, 3)
_UNITS = drawing.SIZE / SIZE
"""Drawn units per pixel."""


@dataclass(frozen=True)
class Clip:
    """Some frames, and all that is known about them.

    Attributes:
        key: Split and number, e.g. ``"test/00012"``.
        wanted: The objects that its prompt names.
        frames: The objects of each frame, in 64 x 64 coordinates, in the prompt's order.
    """

    key: str
    wanted: Wanted
    frames: tuple[tuple[Object, ...], ...]

    @property
    def prompt(self) -> str:
        """The clip's content in words."""
        return self.wanted.prompt

    @cached_property
    def images(self) -> list[Image.Image]:
        """The frames as the world draws them: RGB, 32 x 32."""
        return [paint(objects) for objects in self.frames]

    @cached_property
    def normals(self) -> list[Image.Image]:
        """Normal maps of the frames, for a ControlNet: RGB, 32 x 32."""
        return [structure(objects) for objects in self.frames]

    @cached_property
    def silhouettes(self) -> Floats:
        """Share of each pixel that each object shows, "F objects H W", 0 to 1."""
        return np.stack([silhouettes(objects) for objects in self.frames])

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """The object in each pixel, "F H W": its number from 1; 0 is ground alone."""
        covered = self.silhouettes
        return np.where(covered.max(1) > 0, covered.argmax(1) + 1, 0)

    @cached_property
    def flow(self) -> NDArray[np.float32]:
        """Backward flow, "F-1 H W 2", in pixels, x to the right and y downwards.

        What a pixel of frame f shows was at its place plus (dx, dy) in frame f - 1. Ground doesn't
        move.
        """
        places = np.array([[(o.cx, o.cy) for o in objects] for objects in self.frames]) / _UNITS
        steps = np.pad(-np.diff(places, axis=0), ((0, 0), (1, 0), (0, 0)))
        turns = np.arange(len(steps))[:, None, None]
        return steps[turns, self.owners[1:]].astype(np.float32)

    @cached_property
    def visible(self) -> NDArray[np.bool_]:
        """True where what a pixel of frame f shows is seen in frame f - 1 too, "F-1 H W".

        So it is if all pixels that the flow points between belong to the same object, or are
        ground.
        """
        seen = np.zeros(self.flow.shape[:3], bool)
        for owner in range(self.silhouettes.shape[1] + 1):
            own = (self.owners == owner).astype(np.float64)[..., None]
            same = warp(own[:-1], self.flow)[..., 0] > 1 - 1e-6
            seen |= same & (self.owners[1:] == owner)
        return seen

    @cached_property
    def still(self) -> NDArray[np.bool_]:
        """Pixels that show nothing but ground in all frames, "H W"."""
        return np.asarray((self.owners == 0).all(0))


def clip(
    split: str, index: int, *, frames: int = FRAMES, grain: float = GRAIN, fastest: float = FASTEST
) -> Clip:
    """The clip of that number; its combination of kinds is the split's own, see `scenes`.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        index: From 0.
        frames: Number of frames.
        grain: Speeds are multiples of it, in pixels per frame.
        fastest: Largest speed along either axis, in pixels per frame.

    Raises:
        ValueError: An unknown split, fewer than one frame, or no speed within the bounds.
    """
    check_choice("clip", "split", split, SPLITS)
    if frames < 1 or not 0 < grain <= fastest:
        raise ValueError(
            f"a clip of {frames} frames with speeds in steps of {grain} up to {fastest}: it needs "
            "a frame at least, and 0 < grain <= fastest"
        )
    key = f"{split}/{index:05d}"
    rng = random.Random(f"video/{key}")
    kinds: list[Kind] = list(rng.choice(combinations(split, rng.choice(_COUNTS))))
    rng.shuffle(kinds)
    want = Wanted(tuple(kinds))
    objects = list(right_picture(want, rng.getrandbits(32)).objects)
    steps = math.floor(fastest / grain)
    speeds = [[rng.choice((-1, 1)) * rng.randint(1, steps) * grain for _ in "xy"] for _ in kinds]
    shown = [tuple(objects)]
    for _ in range(frames - 1):
        for number, speed in enumerate(speeds):
            objects[number] = _moved(objects, number, speed)
        shown.append(tuple(objects))
    return Clip(key, want, tuple(shown))


def clips(split: str, count: int, **settings: Any) -> list[Clip]:
    """The first clips of a split; settings as of `clip`."""
    return [clip(split, index, **settings) for index in range(count)]


def _moved(objects: Sequence[Object], number: int, speed: list[float]) -> Object:
    """An object one frame later; where its way is blocked it turns ``speed`` back.

    Where every way is blocked it waits.
    """
    item = objects[number]
    others = [other for place, other in enumerate(objects) if place != number]
    for across, down in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
        turned = [across * speed[0], down * speed[1]]
        there = replace(item, cx=item.cx + turned[0] * _UNITS, cy=item.cy + turned[1] * _UNITS)
        inside = all(item.r <= place <= drawing.SIZE - item.r for place in (there.cx, there.cy))
        if inside and all(
            math.hypot(there.cx - o.cx, there.cy - o.cy) > there.r + o.r for o in others
        ):
            speed[:] = turned
            return there
    return item
