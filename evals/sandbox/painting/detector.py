"""The content of a picture: coloured blobs, and the shape that each one has. No neural network.

Colour segmentation, connected components, and the template with the largest overlap (IoU). Built
for flat colours on this world's background.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from regaze.evals.sandbox.drawing import Object, shape_mask
from regaze.evals.sandbox.painting.prompts import COLOURS, SHAPES
from regaze.evals.sandbox.painting.scenes import BACKGROUND, SIZE

MIN_IOU = 0.7
"""Overlap from which a blob counts as the shape that fits it best."""
MIN_AREA = 10.0
"""Smallest blob, in pixels; the smallest object drawn has 26."""
SOLID = 0.5
"""Opacity from which a pixel is part of a blob rather than its fringe."""

_WINDOW = 21
_RADII = np.arange(7.0, 15.1, 0.5)
_OFFSETS = (-0.5, -0.25, 0.0, 0.25, 0.5)
_NAMES = tuple(COLOURS)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Blob:
    """One thing that a picture shows.

    Attributes:
        colour: One of ``COLOURS``.
        shape: One of ``SHAPES``, or None where none fits.
        iou: Overlap with the best template, 0 to 1.
        x: Centre of mass, pixels from the left.
        y: Centre of mass, pixels from the top.
        area: In pixels, fringes counted by their opacity.
    """

    colour: str
    shape: str | None
    iou: float
    x: float
    y: float
    area: float


def detect(image: Image.Image) -> list[Blob]:
    """Everything that a picture shows, the largest first.

    Raises:
        ValueError: The picture isn't 32 x 32 RGB.
    """
    if image.size != (SIZE, SIZE) or image.mode != "RGB":
        raise ValueError(
            f"a picture of {image.size[0]} x {image.size[1]} pixels in mode {image.mode} can't be "
            f"checked: the painting world is {SIZE} x {SIZE} RGB"
        )
    opacity, colour = segment(np.asarray(image, np.float64))
    blobs = []
    for index, name in enumerate(_NAMES):
        own = np.where(colour == index, opacity, 0.0)
        labels, count = ndimage.label(own >= SOLID, np.ones((3, 3)))
        for label in range(1, count + 1):
            fringe = ndimage.binary_dilation(labels == label, np.ones((3, 3)))
            mask = np.where(fringe & ((labels == label) | (own < SOLID)), own, 0.0)
            if mask.sum() >= MIN_AREA:
                blobs.append(_blob(name, mask))
    return sorted(blobs, key=lambda blob: -blob.area)


def segment(picture: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Each pixel as background with one colour painted over it: how opaque, and which.

    The nearest palette colour alone would read the grey fringe of white as green.
    """
    ground = np.array(BACKGROUND, np.float64)
    rays = np.array(list(COLOURS.values()), np.float64) - ground
    pixels = picture - ground
    opacity = (pixels @ rays.T / (rays * rays).sum(1)).clip(0.0, 1.0)
    miss = np.linalg.norm(pixels[:, :, None] - opacity[..., None] * rays, axis=-1)
    colour = miss.argmin(-1)
    return np.take_along_axis(opacity, colour[..., None], -1)[..., 0], colour


def _blob(colour: str, mask: Floats) -> Blob:
    y, x = ndimage.center_of_mass(mask)
    row, column = round(y), round(x)
    half = _WINDOW // 2
    window = np.pad(mask, half)[row : row + _WINDOW, column : column + _WINDOW]
    nearest = [min(_OFFSETS, key=lambda o: abs(o - rest)) for rest in (y - row, x - column)]
    templates = _templates(*nearest)
    overlap = np.minimum(templates, window).sum((1, 2)) / np.maximum(templates, window).sum((1, 2))
    best = int(overlap.argmax())
    shape = SHAPES[best // len(_RADII)] if overlap[best] >= MIN_IOU else None
    # A pixel's centre is half a pixel from its left and upper edge.
    x, y = float(x) + 0.5, float(y) + 0.5
    return Blob(colour, shape, float(overlap[best]), x, y, float(mask.sum()))


@cache
def _templates(dy: float, dx: float) -> Floats:
    """Every shape in every size, off a window's centre: ``(shapes * sizes, 21, 21)``, 0 to 1."""
    # The middle of the window falls into the middle of the sheet's pixel 16, 33 of 64 drawn units.
    cx, cy = (2 * (SIZE // 2 + offset) + 1 for offset in (dx, dy))
    start = SIZE // 2 - _WINDOW // 2
    sheets = []
    for shape in SHAPES:
        for radius in _RADII:
            drawn = shape_mask(Object(shape, "white", cx, cy, radius, 0.0), 4)
            sheet = np.asarray(drawn.resize((SIZE, SIZE), Image.Resampling.BOX)) / 255
            sheets.append(sheet[start : start + _WINDOW, start : start + _WINDOW])
    return np.stack(sheets)
