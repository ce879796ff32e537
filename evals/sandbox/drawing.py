"""Draw a scene's objects.

Pixel noise is made of raw PCG64 words, whose stream numpy guarantees; antialiasing is Pillow's, so
another version of it may change single pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE = 64
"""Width and height of a scene, in pixels."""

COLOURS = {
    "red": (215, 45, 45),
    "green": (45, 165, 65),
    "blue": (50, 85, 215),
    "yellow": (225, 200, 50),
    "purple": (150, 60, 180),
    "white": (235, 235, 235),
}

_SUPERSAMPLING = 2

Point = tuple[float, float]
Box = tuple[int, int, int, int]
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Object:
    """One drawn object.

    Attributes:
        shape: One of ``SHAPES``; no shape occurs twice in a scene.
        colour: One of ``COLOURS``.
        cx: Centre, pixels from the left.
        cy: Centre, pixels from the top.
        r: Radius of the circle that holds the shape, in pixels.
        rotation: Clockwise, in radians.
    """

    shape: str
    colour: str
    cx: float
    cy: float
    r: float
    rotation: float

    @property
    def phrase(self) -> str:
        """Colour and shape, e.g. ``"red circle"``: what questions and captions speak of."""
        return phrase(self.shape, self.colour)


def phrase(shape: str, colour: str) -> str:
    """The words for an object, e.g. ``"red circle"``."""
    return f"{colour} {shape}"


def _circle(radius: float, dx: float = 0.0, dy: float = 0.0, corners: int = 24) -> list[Point]:
    turns = (2 * math.pi * i / corners for i in range(corners))
    return [(radius * math.cos(t) + dx, radius * math.sin(t) + dy) for t in turns]


def _star() -> list[Point]:
    radii = (1.0, 0.42)
    turns = ((math.pi * i / 5, radii[i % 2]) for i in range(10))
    return [(r * math.sin(t), -r * math.cos(t)) for t, r in turns]


def _heart() -> list[Point]:
    def corner(t: float) -> Point:
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        return 16 * math.sin(t) ** 3 / 17, -y / 17

    return [corner(2 * math.pi * i / 24) for i in range(24)]


def _cross() -> list[Point]:
    quarter = [(-0.3, -0.95), (0.3, -0.95), (0.3, -0.3)]
    turns = [(1, 0), (0, 1), (-1, 0), (0, -1)]
    return [(c * x - s * y, s * x + c * y) for c, s in turns for x, y in quarter]


# Outlines within the unit circle, y downwards.
_OUTLINE: dict[str, list[Point]] = {
    "circle": _circle(0.95),
    "square": [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
    "triangle": [(0.0, -1.0), (0.86, 0.5), (-0.86, 0.5)],
    "star": _star(),
    "cross": _cross(),
    "ring": _circle(0.95),
    "diamond": [(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)],
    "heart": _heart(),
    "moon": _circle(0.95),
    "arrow": [
        *((-0.95, -0.28), (0.1, -0.28), (0.1, -0.8), (1.0, 0.0)),
        *((0.1, 0.8), (0.1, 0.28), (-0.95, 0.28)),
    ],
}
_HOLE = {"ring": _circle(0.5), "moon": _circle(0.81, 0.45, -0.15)}


def shape_mask(item: Object, scale: int = 1) -> Image.Image:
    """The object's silhouette as an ``L`` image of ``64 * scale`` pixels: 255 inside, 0 outside."""
    cos, sin = math.cos(item.rotation), math.sin(item.rotation)

    def pixels(outline: list[Point]) -> list[Point]:
        turned = ((cos * x - sin * y, sin * x + cos * y) for x, y in outline)
        return [((item.cx + item.r * x) * scale, (item.cy + item.r * y) * scale) for x, y in turned]

    mask = Image.new("L", (SIZE * scale, SIZE * scale), 0)
    draw = ImageDraw.Draw(mask)
    draw.polygon(pixels(_OUTLINE[item.shape]), fill=255)
    if item.shape in _HOLE:
        draw.polygon(pixels(_HOLE[item.shape]), fill=0)
    return mask


def draw(objects: Sequence[Object], content: Box, seed: str, pieces: int = 0) -> Image.Image:
    """Draws objects on a noisy, cluttered background with small occluders: RGB, 64 x 64.

    Args:
        objects: The objects to draw.
        content: Left, top, right and bottom pixel of the picture inside its border.
        seed: Decides on background, contrast, clutter, occluders and noise.
        pieces: Small pieces of clutter to add.
    """
    rng = random.Random(seed)
    scale = _SUPERSAMPLING
    grey = rng.randint(50, 120)
    base = _jitter((grey, grey, grey), 12, rng)
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), base)
    canvas = ImageDraw.Draw(image)

    def rectangle(x: float, y: float, width: float, height: float, fill: RGB) -> None:
        box = (x, y, x + width, y + height)
        canvas.rectangle([edge * scale for edge in box], fill=fill)

    for _ in range(rng.randint(0, 4)):  # clutter
        x, y = rng.randint(-8, SIZE), rng.randint(-8, SIZE)
        rectangle(x, y, rng.randint(6, 22), rng.randint(6, 22), _jitter(base, 28, rng))
    for _ in range(pieces):
        left, top = rng.uniform(0, SIZE), rng.uniform(0, SIZE)
        rectangle(left, top, rng.uniform(2, 6), rng.uniform(2, 6), _jitter(base, 28, rng))
    for item in objects:
        contrast = rng.uniform(0.6, 1.0)
        colour = _jitter(COLOURS[item.colour], 15, rng)
        blend = [
            round(contrast * c + (1 - contrast) * b) for c, b in zip(colour, base, strict=True)
        ]
        image.paste((blend[0], blend[1], blend[2]), mask=shape_mask(item, scale))
        if rng.random() < 0.10:  # a small occluder hides a part
            side = rng.uniform(0.6, 1.0) * item.r
            dx, dy = rng.uniform(-item.r, item.r), rng.uniform(-item.r, item.r)
            rectangle(item.cx + dx - side / 2, item.cy + dy - side / 2, side, side, base)

    picture = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX)).astype(np.float64)
    picture += rng.uniform(4.0, 12.0) * _unit_noise(rng.getrandbits(64), picture.shape)
    left, top, right, bottom = content
    border = np.full_like(picture, rng.randint(0, 40))
    border += 2.0 * _unit_noise(rng.getrandbits(64), border.shape)
    border[top:bottom, left:right] = picture[top:bottom, left:right]
    return Image.fromarray(border.clip(0, 255).astype(np.uint8))


def _jitter(colour: RGB, spread: int, rng: random.Random) -> RGB:
    r, g, b = (min(255, max(0, c + rng.randint(-spread, spread))) for c in colour)
    return r, g, b


def _unit_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Nearly normal noise of unit variance: sums of four uniform 16-bit parts of a word."""
    words = np.random.PCG64(seed).random_raw(math.prod(shape))
    parts = words.view(np.uint16).reshape(*shape, 4)
    # A uniform variable on [0, 1) has variance 1/12, four of them 1/3.
    total: NDArray[np.float64] = parts.sum(-1, dtype=np.float64) / 65536 - 2
    return total * math.sqrt(3)
