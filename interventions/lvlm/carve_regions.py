"""CARVE's pictures: from two runs' attention to a map, a mask and a crop. Pure functions.

Equal to the paper's own code (YuyaoGe/CARVE@a1f0442) on what it produced, with the settings that
`regaze.interventions.lvlm.carve` names v1 to v4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Map = NDArray[np.float64]
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]
"""Left, top, right and bottom pixel; the last two are outside."""
Steps = Literal["first", "last", "all"]
Rule = Literal["attention", "size", "drop_small"]
Fit = Literal["fill", "pad"]

LAMBDA = 1e-8


def contrast(
    query: NDArray[np.floating],
    general: NDArray[np.floating],
    steps: Steps = "all",
    lam: float = LAMBDA,
) -> Map:
    """Contrast of two runs' attention to the patches, fused over layers and generated tokens.

    Args:
        query: "T L ...": last row's attention while answering the question, mean over heads.
        general: "T' L ...": the same for the general question; the longer run is cut.
        steps: Tokens that count: the first, the last, or all with weight 1 for the first, 2 for the
            second and so on.
        lam: Keeps the quotient finite.

    Returns:
        "...", the patches in whatever shape they came.
    """
    length = min(len(query), len(general))
    ratio = query[:length].astype(np.float64) / (general[:length].astype(np.float64) + lam)
    weights = np.arange(1.0, length + 1)
    if steps != "all":
        weights = np.eye(length)[0 if steps == "first" else -1]
    fused: Map = np.tensordot(weights, ratio.sum(1), 1)
    return fused


def to_pixels(patches: Map, size: tuple[int, int]) -> Map:
    """A map over patches, "rows cols", as one over pixels, bilinear.

    Args:
        patches: "rows cols".
        size: Width and height.
    """
    # Resizing is linear, so resizing the sum over layers and steps is resizing each and summing.
    image = Image.fromarray(patches.astype(np.float32), mode="F")
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float64)


def strongest(
    pixels: Map,
    top: float = 0.2,
    rule: Rule = "attention",
    regions: int = 3,
    share: float = 0.2,
    smallest: float = 0.001,
) -> Mask:
    """The regions to keep: connected pixels (by their sides) among the highest.

    Args:
        pixels: "height width".
        top: Share of the pixels that count as high.
        rule: Rank regions by their summed contrast or their size; or only drop the small ones.
        regions: Regions kept, if there are so many.
        share: Share of the regions that is kept where that is more.
        smallest: Size below which ``drop_small`` drops a region: a share of the high pixels.

    Returns:
        "height width".

    Raises:
        ValueError: The map is constant or not finite, so nothing stands out.
    """
    if not np.isfinite(pixels).all() or np.ptp(pixels) == 0:
        raise ValueError(
            "the contrast map is constant or not finite, so no region stands out: choose layers "
            "that look at the image"
        )
    high = pixels >= np.percentile(pixels, 100 * (1 - top))
    labels, n_regions = ndimage.label(high)
    index = np.arange(1, n_regions + 1)
    sizes = ndimage.sum_labels(high, labels, index)
    if rule == "drop_small":
        # Rounded down, as in the code.
        kept = index[sizes >= int(smallest * high.sum())]
    else:
        strength = sizes if rule == "size" else ndimage.sum_labels(pixels, labels, index)
        count = max(regions, int(share * n_regions))
        kept = index[np.argsort(-strength, kind="stable")[:count]]
    return np.isin(labels, kept)


def bounds(mask: Mask) -> Box:
    """The smallest box that holds what is kept."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def magnify(image: Image.Image, mask: Mask, fit: Fit = "fill") -> Image.Image:
    """The kept pixels on black, cropped to their box and enlarged; the crop keeps its shape.

    Args:
        image: The picture under the mask.
        mask: "height width".
        fit: "fill" enlarges until both sides reach those of the image, so one may exceed it;
            "pad" until the first does, and fills the rest of the image's size with black.
    """
    masked = Image.fromarray(np.asarray(image.convert("RGB")) * mask[..., None].astype(np.uint8))
    crop = masked.crop(bounds(mask))
    scales = (image.width / crop.width, image.height / crop.height)
    scale = max(scales) if fit == "fill" else min(scales)
    size = (max(1, int(crop.width * scale)), max(1, int(crop.height * scale)))
    enlarged = crop.resize(size, Image.Resampling.LANCZOS)
    if fit == "fill":
        return enlarged
    padded = Image.new("RGB", image.size)
    padded.paste(enlarged, ((image.width - size[0]) // 2, (image.height - size[1]) // 2))
    return padded


def elsewhere(mask: Mask, rng: np.random.Generator) -> Mask:
    """A control: the same regions, mirrored and moved at random within the picture.

    Args:
        mask: "height width".
        rng: Decides on mirroring and place, all equally likely.
    """
    left, top, right, bottom = bounds(mask)
    part = mask[top:bottom, left:right]
    part = part[:: rng.choice((1, -1)), :: rng.choice((1, -1))]
    row = int(rng.integers(mask.shape[0] - part.shape[0] + 1))
    column = int(rng.integers(mask.shape[1] - part.shape[1] + 1))
    moved = np.zeros_like(mask)
    moved[row : row + part.shape[0], column : column + part.shape[1]] = part
    return moved


def middle(image_processor: Any, size: tuple[int, int]) -> Box | None:
    """The part of a picture that a model sees if its processor cuts out the middle.

    CLIP's does (LLaVA-1.5): it resizes the shorter side and crops. Those of models that cut
    pictures into tiles name a crop too, but their tiles already have its size.

    Args:
        image_processor: The model's image processor.
        size: Width and height of the picture.

    Returns:
        None if the whole picture is seen.
    """
    tiles = hasattr(image_processor, "image_grid_pinpoints")
    if not getattr(image_processor, "do_center_crop", False) or tiles:
        return None
    shortest = getattr(image_processor.size, "shortest_edge", None)
    if shortest is None:
        scales = image_processor.size.width / size[0], image_processor.size.height / size[1]
    else:
        scales = (shortest / min(size),) * 2
    crop = image_processor.crop_size
    width = min(size[0], round(crop.width / scales[0]))
    height = min(size[1], round(crop.height / scales[1]))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


__all__: Sequence[str] = [
    "bounds",
    "contrast",
    "elsewhere",
    "magnify",
    "middle",
    "strongest",
    "to_pixels",
]
