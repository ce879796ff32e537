"""Drawn scenes with exact ground truth: coloured shapes on a letterboxed, cluttered background.

Every scene is a pure function of its split and index. The layout comes from
``random.Random(str)``, whose seeding and draws are the same on every platform.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from regaze.evals.sandbox.drawing import COLOURS, SIZE, Box, Object, draw, phrase
from regaze.evals.sandbox.known import check_scene

SPLITS = ("train", "validation", "test", "test-prior", "clutter-validation", "clutter")
"""``train`` and ``test-prior`` follow the co-occurrence prior, the others are free of it; in the
last two objects are half as large and lie among pieces of background."""

PAIRS = (
    ("circle", "square"),
    ("triangle", "star"),
    ("cross", "ring"),
    ("diamond", "heart"),
    ("moon", "arrow"),
)
SHAPES = tuple(shape for pair in PAIRS for shape in pair)
PARTNER = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
"""The shape that joins a shape in scenes with the prior."""
FAVOURITE = {
    "circle": "red",
    "square": "blue",
    "triangle": "green",
    "star": "yellow",
    "cross": "purple",
    "ring": "white",
    "diamond": "blue",
    "heart": "red",
    "moon": "yellow",
    "arrow": "green",
}
"""The colour that a shape prefers in scenes with the prior."""
P_PARTNER = 0.7
P_FAVOURITE = 0.5

_MAX_OBJECTS = 5
_SMALLEST, _LARGEST = 6.0, 9.0
# A shape of this radius covers about one patch of the vision tower, and training has none so small.
_SMALLEST_IN_CLUTTER, _LARGEST_IN_CLUTTER = 2.5, 4.0


@dataclass(frozen=True)
class Scene:
    """One image and all that is in it.

    Attributes:
        key: Split and index, e.g. ``"test/00012"``.
        objects: In random order, at least one.
        content: Left, top, right and bottom pixel of the picture inside its letterbox border.
        pieces: Small pieces of background that lie about, besides the usual ones.
    """

    key: str
    objects: tuple[Object, ...]
    content: Box
    pieces: int = 0

    @cached_property
    def image(self) -> Image.Image:
        """RGB, 64 x 64; drawn on first use."""
        return draw(self.objects, self.content, f"{self.key}/pixels", self.pieces)


def scene(split: str, index: int) -> Scene:
    """The scene of that number; splits share no random stream, so none of their scenes.

    Raises:
        ValueError: Unknown split or negative index.
    """
    key, rng, content, kinds = _begun(split, index)
    if not split.startswith("clutter"):
        return Scene(key, _place(kinds, content, rng, _SMALLEST, _LARGEST), content)
    placed = _place(kinds, content, rng, _SMALLEST_IN_CLUTTER, _LARGEST_IN_CLUTTER)
    return Scene(key, placed, content, rng.randint(6, 12))


def scene_key(split: str, index: int) -> str:
    """The key of a scene, e.g. ``"test/00012"``."""
    return f"{split}/{index:05d}"


def phrases(split: str, index: int) -> list[str]:
    """The objects of a scene, in its order, as `Object.phrase` names them; none is placed.

    Raises:
        ValueError: Unknown split or negative index.
    """
    *_, kinds = _begun(split, index)
    return [phrase(shape, colour) for shape, colour in kinds]


def _begun(split: str, index: int) -> tuple[str, random.Random, Box, list[tuple[str, str]]]:
    """A scene's key, random stream, letterbox and kinds of objects, before these are placed."""
    check_scene(split, index, SPLITS)
    key = scene_key(split, index)
    rng = random.Random(key)
    content = _letterbox(rng)
    with_prior = split in ("train", "test-prior")
    kinds = _kinds_with_prior(rng) if with_prior else _kinds_without_prior(rng)
    rng.shuffle(kinds)
    return key, rng, content, kinds


def _kinds_with_prior(rng: random.Random) -> list[tuple[str, str]]:
    """Shapes and colours: one to three seeds, each bringing its partner with ``P_PARTNER``."""
    kinds: dict[str, str] = {}
    for first in rng.sample(SHAPES, rng.choice((1, 1, 2, 2, 3))):
        joined = rng.random() < P_PARTNER
        for shape in (first, PARTNER[first]) if joined else (first,):
            if shape not in kinds and len(kinds) < _MAX_OBJECTS:
                favoured = rng.random() < P_FAVOURITE
                kinds[shape] = FAVOURITE[shape] if favoured else rng.choice(tuple(COLOURS))
    return list(kinds.items())


def _kinds_without_prior(rng: random.Random) -> list[tuple[str, str]]:
    """Shapes and colours: count, shapes and colours uniform."""
    shapes = rng.sample(SHAPES, rng.randint(1, _MAX_OBJECTS))
    return [(shape, rng.choice(tuple(COLOURS))) for shape in shapes]


def _letterbox(rng: random.Random) -> Box:
    """A picture box with one broad border at a random side and often a second, narrower one.

    The broad border always covers whole patches of the vision tower, but never the same ones:
    background tokens that turn into attention sinks must be found by what they show.
    """
    margins = [0, 0, 0, 0]
    sides = rng.sample(range(4), 2)
    margins[sides[0]] = rng.randint(9, 16)
    if rng.random() < 0.5:
        margins[sides[1]] = rng.randint(3, 10)
    left, top, right, bottom = margins
    return left, top, SIZE - right, SIZE - bottom


def _place(
    kinds: Sequence[tuple[str, str]],
    content: Box,
    rng: random.Random,
    smallest: float,
    largest: float,
) -> tuple[Object, ...]:
    """Gives every kind a free place, shrinking the radii until all fit."""
    left, top, right, bottom = content
    while True:
        placed: list[Object] = []
        for shape, colour in kinds:
            for _ in range(30):
                r = rng.uniform(smallest, largest)
                cx = rng.uniform(left + r, right - r)
                cy = rng.uniform(top + r, bottom - r)
                if all(math.hypot(cx - o.cx, cy - o.cy) > r + o.r + 1 for o in placed):
                    placed.append(Object(shape, colour, cx, cy, r, rng.uniform(-0.3, 0.3)))
                    break
        if len(placed) == len(kinds):
            return tuple(placed)
        largest = max(smallest, largest - 0.5)
