"""Height fields and normal maps of pictures: what a ControlNet is told, and its way back.

Every object rises from flat ground as a dome: its silhouette, blurred. So a normal map shows where
things are and what shape they have, but not their colours. The same relief of the silhouettes that
the detector finds in a painted picture gives the structure that was really painted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from regaze.evals.sandbox.drawing import Object, shape_mask
from regaze.evals.sandbox.painting.detector import segment
from regaze.evals.sandbox.painting.prompts import COLOURS
from regaze.evals.sandbox.painting.scenes import SIZE

RELIEF = 4.0
"""Height of a large flat object, in pixels; the rim then rises at about 45 degrees."""
BLUR = 1.5
"""Standard deviation of the blur that makes a dome of a silhouette, in pixels."""

_DRAWN_SCALE = 2

Floats = NDArray[np.float64]


def silhouettes(objects: Sequence[Object]) -> Floats:
    """Shares of each pixel that an object covers and shows, ``(objects, 32, 32)``, 0 to 1.

    Later objects lie on top, as they are painted.
    """
    drawn = (shape_mask(item, _DRAWN_SCALE) for item in objects)
    covers = [np.asarray(m.resize((SIZE, SIZE), Image.Resampling.BOX)) / 255 for m in drawn]
    free = np.ones((SIZE, SIZE))
    shown: list[Floats] = []
    for cover in reversed(covers):
        shown.insert(0, cover * free)
        free = free * (1 - cover)
    return np.stack(shown) if shown else np.zeros((0, SIZE, SIZE))


def heights(masks: Floats) -> Floats:
    """The height field over some silhouettes ``(objects, H, W)``: ``(H, W)``, in pixels.

    Where domes overlap the higher one shows, so that objects that touch stay apart.
    """
    height = np.zeros(masks.shape[1:])
    for mask in masks:
        height = np.maximum(height, ndimage.gaussian_filter(mask, BLUR))
    return RELIEF * height


def normals(height: Floats) -> Floats:
    """Unit normals of a height field.

    Args:
        height: ``(H, W)``, in pixels, towards the viewer.

    Returns:
        ``(H, W, 3)``: x to the right, y downwards, z towards the viewer; flat ground is (0, 0, 1).
    """
    dy, dx = np.gradient(height)
    normal = np.stack([-dx, -dy, np.ones_like(height)], -1)
    return np.asarray(normal / np.linalg.norm(normal, axis=-1, keepdims=True), np.float64)


def normal_map(normal: Floats) -> Image.Image:
    """Normals ``(H, W, 3)`` as an RGB picture: -1 to 1 becomes 0 to 255."""
    return Image.fromarray(np.round((normal + 1) * 127.5).astype(np.uint8))


def structure(objects: Sequence[Object]) -> Image.Image:
    """The normal map of some objects: RGB, 32 x 32."""
    return normal_map(normals(heights(silhouettes(objects))))


def estimate(picture: Image.Image) -> Image.Image:
    """The normal map of what a picture shows: RGB, 32 x 32.

    Each colour of the painting world is one silhouette; what no colour explains is ground.
    """
    opacity, colour = segment(np.asarray(picture, np.float64))
    masks = np.stack([np.where(colour == index, opacity, 0.0) for index in range(len(COLOURS))])
    return normal_map(normals(heights(masks)))
