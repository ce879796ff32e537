"""ViCrop's maps and boxes. Pure functions.

Equal to the paper's own code (saccharomycetes/mllms_know@a64c5d5, utils.py and llava_methods.py) on
what it produced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from regaze.interventions.lvlm.carve_regions import Box, Map

RATIOS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
TILE = 1024
_BLUR = np.exp(-0.5 * (np.arange(-1, 2) / 0.8) ** 2)
_MEDIAN = 7


def relative_map(query: NDArray[np.floating], general: NDArray[np.floating]) -> Map:
    """Attention on patches relative to the general question's.

    Args:
        query: "...".
        general: The same shape.

    Raises:
        ValueError: It isn't finite: the general question gives a patch nothing at all.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Map = np.asarray(query, np.float64) / np.asarray(general, np.float64)
    if not np.isfinite(found).all():
        raise ValueError(
            "the general question gives some patch no attention at this layer, so nothing can be "
            "relative to it: choose another layer"
        )
    return found


def gradient_map(weights: Tensor, scores: Tensor) -> Tensor:
    """Attention times its positive gradient.

    Args:
        weights: "...", attention weights that ``scores`` depend on.
        scores: "V" logits of the next token.

    Returns:
        "...", weights times relu of the gradient of the likeliest token's log-probability.
    """
    (gradient,) = torch.autograd.grad(likeliest(scores), weights)
    return (weights * gradient.relu()).detach()


def likeliest(scores: Tensor) -> Tensor:
    """Log-probability of the likeliest token, a number."""
    return scores.float().log_softmax(-1).amax()


def fine_detail(picture: Image.Image, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Mask of the pixels with more fine detail than the median pixel: "height width".

    The picture less its Gaussian blur (3 x 3, sigma 0.8), norm over colours, median of 7 x 7.

    Args:
        picture: An RGB picture.
        size: Width and height of the result, to which the picture is resized.
    """
    pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR), np.float64) / 255
    blurred = pixels
    for axis in (0, 1):
        blurred = ndimage.correlate1d(blurred, _BLUR / _BLUR.sum(), axis, mode="mirror")
    detail = ndimage.median_filter(np.linalg.norm(pixels - blurred, axis=-1), _MEDIAN)
    found: NDArray[np.bool_] = detail > np.median(detail)
    return found


def by_patch(pixels: NDArray[np.generic], side: int) -> NDArray[Any]:
    """A map of pixels, "height width", by patches of so many pixels: "rows cols P"."""
    height, width = pixels.shape
    cut = pixels.reshape(height // side, side, width // side, side)
    return cut.swapaxes(1, 2).reshape(height // side, width // side, -1)


def pooled(pixels: Map, picture: Image.Image) -> Map:
    """Mean over each patch of what falls on fine detail.

    Args:
        pixels: "rows cols P", a map of pixels by square patches.
        picture: The picture under the map.

    Raises:
        ValueError: The picture has no fine detail.
    """
    rows, cols, count = pixels.shape
    side = math.isqrt(count)
    detail = fine_detail(picture, (cols * side, rows * side))
    if not detail.any():
        raise ValueError("the picture is flat nearly everywhere, so nothing in it stands out")
    found: Map = (pixels * by_patch(detail, side)).mean(-1)
    return found


def tile_boxes(size: tuple[int, int], most: int = TILE) -> list[list[Box]]:
    """The tiles of a large picture, in rows; the last ones may reach past its edge.

    As many rows as ``most`` pixels of height take, and columns by the picture's proportions, at
    least one (the code divides by zero there).

    Args:
        size: Width and height of the picture.
        most: Largest height of a tile.
    """
    width, height = size
    rows = math.ceil(height / most)
    cols = max(1, int(rows * width / height))
    across, down = math.ceil(width / cols), math.ceil(height / rows)
    return [
        [(x * across, y * down, (x + 1) * across, (y + 1) * down) for x in range(cols)]
        for y in range(rows)
    ]


def join(maps: Sequence[Sequence[NDArray[np.float32]]]) -> NDArray[np.float32]:
    """Maps of tiles, "T L rows cols ...", given in rows, as that of the picture."""
    return np.concatenate([np.concatenate(row, 3) for row in maps], 2)


def crop_box(relative: NDArray[np.floating], size: tuple[int, int], base: int) -> Box:
    """The box that stands out most.

    Args:
        relative: "rows cols", one number a patch.
        size: Width and height of the picture.
        base: Side of the smallest box, in pixels.

    Returns:
        Left, top, right and bottom pixel.

    Raises:
        ValueError: The smallest window holds no whole patch.
    """
    rows, cols = relative.shape
    wide, high = size[0] / cols, size[1] / rows
    best: tuple[float, float, int, int, int, int] | None = None
    for ratio in RATIOS:
        across = min(int(base * ratio / wide), cols)
        down = min(int(base * ratio / high), rows)
        if across < 1 or down < 1:
            raise ValueError(
                f"a patch covers {wide:.0f} x {high:.0f} pixels here, so a box of {base} holds "
                "none: take a larger base="
            )
        if across == cols and down == rows:
            if ratio == 1:
                return 0, 0, *size
            continue
        sums = _windows(relative, down, across)
        # The first of the largest, from left to right and then down.
        x, y = divmod(int(sums.T.argmax()), sums.shape[0])
        around = [(y, x - 1), (y, x + 1), (y - 1, x), (y + 1, x)]
        near = [sums[j, i] for j, i in around if 0 <= j < sums.shape[0] and 0 <= i < sums.shape[1]]
        stands_out = float(sums[y, x] - np.mean(near)) / (across * down)
        if best is None or stands_out > best[0]:
            best = stands_out, ratio, x, y, across, down
    if best is None:
        return 0, 0, *size
    _, ratio, x, y, across, down = best
    centre = int((x + across / 2) * wide), int((y + down / 2) * high)
    half = int(base * ratio // 2)
    ends = [_around(at, half, whole) for at, whole in zip(centre, size, strict=True)]
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def _windows(values: NDArray[np.floating], down: int, across: int) -> NDArray[np.float64]:
    """Sums of all windows, by their top left corner."""
    views = np.lib.stride_tricks.sliding_window_view(values.astype(np.float64), (down, across))
    found: NDArray[np.float64] = views.sum((-1, -2))
    return found


def _around(centre: int, half: int, whole: int) -> tuple[int, int]:
    """Both ends of a span about a centre, moved into ``0 ... whole`` and cut to it."""
    centre = max(centre, half)
    centre = min(centre, whole - half)
    return max(0, centre - half), min(whole, centre + half)
